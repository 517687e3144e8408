"""``ossicle sweep``: search a recipe's keys for the best run."""
