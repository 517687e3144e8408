"""Other runtimes: files, estimates, environments."""
