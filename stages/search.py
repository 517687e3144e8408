"""``ossicle search``: find the students that fit a budget and keep most."""
