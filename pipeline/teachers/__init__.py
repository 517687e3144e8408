"""Heavy models that are run once, in stage 1."""
