"""Sweeps over recipe keys, and searches for small students under a budget."""
