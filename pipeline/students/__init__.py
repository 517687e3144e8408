"""The small networks: one file a family, built by name through :mod:`pipeline.students.registry`."""

from pipeline.students.registry import build_student, students

__all__ = ["build_student", "students"]
