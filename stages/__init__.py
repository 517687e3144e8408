"""The verbs of Ossicle: one thin module a command; they share nothing but artifacts on disk."""
