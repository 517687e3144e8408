"""Who has which colour, name and order, in every figure and table of the report (Okabe and Ito, 2008)."""

from __future__ import annotations

TEACHER, STUDENT, INT8, RANDOM, LABELS, LOG_MEL = "teacher", "student", "int8", "random", "labels", "log_mel"
REFERENCE = "reference"
ROLES = (TEACHER, REFERENCE, STUDENT, INT8, LABELS, RANDOM, LOG_MEL)
COLOURS = {
    TEACHER: "#2b7bba",
    REFERENCE: "#4fb3d9",
    STUDENT: "#d9541e",
    INT8: "#e69f00",
    LABELS: "#159a77",
    RANDOM: "#8a8f98",
    LOG_MEL: "#b07aa1",
}
TITLES = {
    TEACHER: "teacher",
    REFERENCE: "another teacher",
    STUDENT: "student, float32",
    INT8: "student, int8",
    LABELS: "same student, labels alone",
    RANDOM: "same student, untrained",
    LOG_MEL: "log-mel, no network",
}
SHORT = {
    TEACHER: "teacher",
    REFERENCE: "teacher",
    STUDENT: "student",
    INT8: "int8",
    LABELS: "labels",
    RANDOM: "untrained",
}
PROBES = {"knn": "k-NN", "linear": "linear"}
CLASSES = (
    "#2b7bba", "#d9541e", "#159a77", "#e69f00", "#b07aa1", "#4fb3d9", "#a8524f", "#6b6fbf", "#8a8f98", "#7a9a2c",
)  # fmt: skip
# Replaced by currentColor and by CSS variables in the SVG, so that one figure reads on light and on dark.
INK, GRID = "#010203", "#040506"


def role_order(role: str) -> int:
    """Return the place of ``role`` in tables; unknown roles come last."""
    return ROLES.index(role) if role in ROLES else len(ROLES)
