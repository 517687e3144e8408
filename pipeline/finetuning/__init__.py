"""Training a teacher, or its head, on labels before it embeds."""
