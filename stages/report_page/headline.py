"""The report's first sentence: the share of the teacher-over-random gap that the headline student recovers."""

from __future__ import annotations

from stages.report_page.benchmark_rows import row_of
from stages.report_page.evidence import Evidence
from stages.report_page.palette import INT8, PROBES, STUDENT
from stages.report_page.tables import find, is_number, signed, tasks_of


def headline(evidence: Evidence) -> str:
    """Return the sentence that the page begins with; it says so where nothing was measured."""
    name = evidence.headline
    if name is None:
        return "No student of this recipe is trained yet."
    for task, title in tasks_of(evidence):
        here = [r for r in (evidence.scores or {})["summary"] if r["task"] == task]
        shares = [
            f"{100 * row['share']:.0f} % ({PROBES[probe]} probe)"
            for probe in PROBES
            if (row := find([r for r in here if r["probe"] == probe], STUDENT, name)) is not None
            and is_number(row["share"])
        ]
        if shares:
            return (
                f"{name} recovers {' and '.join(shares)} of the gap between an untrained network and its teacher on "
                f"{title}{_cost(evidence)}."
            )
    return f"{name}: no share of the teacher-over-random gap was measured."


def subline(evidence: Evidence) -> str:
    """Return what the share means, and what int8 and the executed instructions change."""
    parts = []
    worst = _int8_loss(evidence)
    if worst is not None:
        parts.append(
            f"Its int8 file scores {signed(worst)} points against float32 at worst, over all tasks and probes."
        )
    ratio = _instruction_ratio(evidence)
    if ratio is not None:
        parts.append(ratio)
    parts.append(
        "Share recovered = (student − untrained) / (teacher − untrained); an untrained network of the same shape "
        "is already good at easy tasks, so plain retention flatters."
    )
    return " ".join(parts)


def _cost(evidence: Evidence) -> str:
    student = row_of(evidence, "student", evidence.headline)
    teacher = row_of(evidence, "teacher")
    if student is None or teacher is None or not teacher.get("macs") or not student.get("macs"):
        return ""
    parameters = teacher["parameters"] / student["parameters"]
    macs = teacher["macs"] / student["macs"]
    return f", with 1/{parameters:.0f} of the teacher's parameters and 1/{macs:.0f} of its MACs"


def _int8_loss(evidence: Evidence) -> float | None:
    summary = (evidence.scores or {}).get("summary", [])
    losses = []
    for row in summary:
        if row["role"] == INT8 and row["name"] == evidence.headline:
            same = [r for r in summary if (r["task"], r["probe"]) == (row["task"], row["probe"])]
            student = find(same, STUDENT, evidence.headline)
            if student is not None:
                losses.append(100 * (row["mean"] - student["mean"]))
    return min(losses) if losses else None


def _instruction_ratio(evidence: Evidence) -> str | None:
    rows = [row_of(evidence, "student", evidence.headline, precision) for precision in ("fp32", "s8s8")]
    counts = [(row or {}).get("arm", {}).get("cortex-a76", {}).get("instructions") for row in rows]
    if not all(is_number(count) for count in counts):
        return None
    return f"On a Cortex-A76, int8 executes {counts[1] / counts[0]:.2f} times the instructions of float32."
