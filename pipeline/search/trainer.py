"""One run of a study: trained as ``ossicle distill`` trains it, watched at its validations, stopped early."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pipeline import artifact
from pipeline.errors import TrainingError
from pipeline.search.study import Interrupted, Pruned
from pipeline.training.job import Job
from pipeline.training.metrics import read_metrics
from pipeline.training.pool import Outcome, train_all

Watch = Callable[[int, dict[str, Any]], bool]


def train(
    job: Job,
    *,
    watch: Watch,
    on_event: Callable[[dict[str, Any]], None],
    stopping: threading.Event,
) -> dict[str, Any]:
    """Train ``job`` in a process of its own, from its checkpoint if there is one; return its summary.

    A finished run is not trained again.

    Args:
        job: the run.
        watch: called with step and figures of each validation, the first ones of a resumed run too; True = stop it.
        on_event: called with the events of ``pipeline.training.pool``.
        stopping: once set, the run stops at its next step.

    Raises:
        Pruned: ``watch`` said so.
        Interrupted: ``stopping`` was set.
        TrainingError: the run failed; its log is named.
    """
    if artifact.is_finished(job.folder, job.work):
        return artifact.read(job.folder).summary
    seen = 0

    def listen(_: Job, event: dict[str, Any]) -> None:
        nonlocal seen
        on_event(event)
        if stopping.is_set():
            raise Interrupted
        if event["event"] != "progress":
            return
        lines = read_metrics(job.folder)
        validations = [line for line in lines if any(name.startswith("validation_") for name in line)]
        # What a resumed run will make again is still in the log while it prepares.
        fresh = [line for line in validations[seen:] if line["step"] <= event["step"]]
        for line in fresh:
            seen += 1
            if watch(line["step"], line):
                raise Pruned(line["step"])

    outcome: Outcome = train_all([job], 1, listen)[job.run.label]
    if outcome.state == "stopped":
        raise Interrupted
    if outcome.state == "failed":
        raise TrainingError(f"the run in {job.folder} failed", got=outcome.error)
    return outcome.summary
