"""Quantisation-aware distillation: an exported Q/DQ graph, trained through its own rounding on cached targets."""
