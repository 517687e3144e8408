"""Distillation losses: pure functions of a student's and a teacher's rows, one file an idea."""
