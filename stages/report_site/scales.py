"""In which unit a task's score is shown: per cent where more is better, its own unit where it is an error."""

from __future__ import annotations

from pipeline.evaluation.metrics import METRICS
from stages.report_page.evidence import Evidence


def is_error(evidence: Evidence, task: str) -> bool:
    """Return whether less is better on ``task``: a mean absolute error, say."""
    tasks = (evidence.scores or {}).get("tasks", [])
    metric = METRICS.get(next((str(t["metric"]) for t in tasks if t["name"] == task), ""))
    return metric is not None and not metric.higher_is_better


def shown(evidence: Evidence, task: str) -> tuple[int, float]:
    """Return decimals and factor of a score: hundredths, or an error as it is."""
    return (3, 1.0) if is_error(evidence, task) else (1, 100.0)
