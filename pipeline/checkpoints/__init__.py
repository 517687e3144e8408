"""Checkpoint files of others: which are known, and how they are read without running what is in them."""
