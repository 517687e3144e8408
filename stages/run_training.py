"""Runs trained in processes of their own, several at a time: what ``ossicle distill`` and ``ossicle qat`` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import TrainingError
from pipeline.training.job import Job
from pipeline.training.pool import WORKER, Outcome, limit_of, train_all
from stages.run_display import RunDisplay

AnyJob = TypeVar("AnyJob", bound=Job)


def train_apart(
    recipe: Recipe,
    jobs: Sequence[AnyJob],
    console: Console,
    *,
    command: str,
    steps: Mapping[str, int],
    table: Callable[[Sequence[AnyJob], Mapping[str, Outcome]], Table],
    worker: str = WORKER,
) -> None:
    """Train each job that is not finished in a process of its own, and print the table of all.

    Args:
        recipe: ``jobs`` says how many processes.
        jobs: the runs.
        console: for the bars and the table.
        command: ``distill`` or ``qat``: what begins every line.
        steps: label of each run to its number of steps.
        table: what all came to.
        worker: the module whose process trains one job.

    Raises:
        TrainingError: a run failed; the others were trained all the same.
        KeyboardInterrupt: stopped; every run has its checkpoint.
    """
    done = [job for job in jobs if artifact.is_finished(job.folder, job.work)]
    outcomes = {job.run.label: Outcome("done", artifact.read(job.folder).summary) for job in done}
    for label in outcomes:
        console.print(f"{command}: {label} is finished, reused")
    todo = [job for job in jobs if job.run.label not in outcomes]
    if todo:
        limit = limit_of(recipe.jobs, max(job.threads for job in todo))
        with RunDisplay(console, command, {job.run.label: steps[job.run.label] for job in todo}) as display:
            try:
                outcomes |= train_all(todo, limit, display.show, worker)
            except KeyboardInterrupt:
                display.close()
                console.print(f"{command}: stopped; to go on: ossicle {command} {recipe.name} (same options)")
                raise
    console.print(table(jobs, outcomes))
    failed = {label: _why(outcome) for label, outcome in outcomes.items() if outcome.state != "done"}
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(jobs)} runs failed",
            got="; ".join(f"{label}: {error}" for label, error in failed.items()),
            run="the same command trains only what is not finished",
        )


def _why(outcome: Outcome) -> str:
    return outcome.error if outcome.state == "failed" else f"asked to stop at step {outcome.step}"
