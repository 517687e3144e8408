"""``ossicle distill``: train the recipe's runs from the store alone, several at a time.

Started by torchrun or srun as several processes, it trains one run after the other with all of them:
``torchrun --nproc-per-node 2 -m stages.cli distill RECIPE``.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.config import Recipe
from pipeline.errors import ConfigError, MissingArtifactError
from pipeline.ranks import Rank
from pipeline.recipe import Run
from pipeline.run_folder import folder_of
from pipeline.store.commits import read_marker
from pipeline.training.distributed import Group, joined
from pipeline.training.job import Job, run_job
from pipeline.training.loop import Progress as StepProgress
from pipeline.training.loop import TrainingStopped
from pipeline.training.pool import Outcome
from stages import locations
from stages.run_choice import chosen_runs
from stages.run_display import RunDisplay
from stages.run_training import train_apart

SCORES = ("accuracy", "teacher_accuracy", "mean_average_precision")


def run(recipe: Recipe, *, console: Console, only: tuple[str, ...] = ()) -> Path:
    """Train every run of ``recipe`` that is not finished; those that start from another after that one.

    Args:
        recipe: the recipe; its store must be there.
        console: where progress and the table of runs go.
        only: names (``cnn4``) or labels (``cnn4-seed0``) of runs; empty = all.

    Returns:
        The run's folder, or the folder of all runs where there are several.

    Raises:
        MissingArtifactError: the store is not finished.
        ConfigError: ``only`` names no run.
        TrainingError: a run failed; the others were trained all the same.
        KeyboardInterrupt: stopped; every run has its checkpoint.
    """
    waiting, jobs, rank = chosen_runs(recipe, only), list[Job](), Rank.of_environment()
    while waiting:
        # Where none can start, building the first job says what is missing.
        ready = [run for run in waiting if _can_start(run)] or waiting
        made = [_job(run) for run in ready]
        if rank.world > 1:
            _train_together(made, rank, console)
        else:
            train_apart(recipe, made, console, command="distill", steps=_steps(made), table=_table)
        jobs += made
        waiting = [run for run in waiting if run not in ready]
    return jobs[0].folder if len(jobs) == 1 else locations.root(recipe) / "run"


def _can_start(run: Run) -> bool:
    """Whether the run that this one starts from, if any, is finished."""
    start = run.recipe.train.start_from
    try:
        return start is None or bool(folder_of(start))
    except MissingArtifactError:
        return False


def _train_together(jobs: list[Job], rank: Rank, console: Console) -> None:
    """Train one run after the other with all processes that the launcher started; the first one speaks."""
    devices = {job.run.recipe.train.device for job in jobs}
    if len(devices) > 1:
        raise ConfigError(
            "the recipe's runs are on several devices, and its processes are on one kind",
            expected="one train.device", got=", ".join(sorted(devices)), run="--only RUN",
        )  # fmt: skip
    if rank.rank:
        console = Console(quiet=True)
        logging.getLogger("pipeline").setLevel(logging.ERROR)
    outcomes: dict[str, Outcome] = {}
    with (
        _asked_to_stop() as asked,
        joined(rank, devices.pop()) as group,
        RunDisplay(console, "distill", _steps(jobs)) as display,
    ):
        console.print(f"distill: {rank.world} processes a run")
        for job in jobs:
            display.show(job, {"event": "start"})
            try:
                outcomes[job.run.label] = _train_one(job, group, display, asked)
            except TrainingStopped as stopped:
                display.show(job, {"event": "stopped", "step": stopped.step})
                console.print("distill: stopped; the same command goes on")
                raise KeyboardInterrupt from stopped
    console.print(_table(jobs, outcomes))


def _train_one(job: Job, group: Group, display: RunDisplay, asked: Callable[[], bool]) -> Outcome:
    def progress(now: StepProgress) -> None:
        if group.is_first:
            display.show(job, {
                "event": "progress", "step": now.step, "steps": now.steps, "loss": now.loss,
                "samples_per_second": now.samples_per_second,
            })  # fmt: skip

    done = run_job(job, group=group, on_progress=progress, should_stop=asked)
    display.show(job, {"event": "done", "summary": done.summary})
    return Outcome("done", done.summary)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Give a question that SIGTERM (of the launcher) or SIGINT (of the terminal) answers with yes."""
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def jobs_of(recipe: Recipe, only: tuple[str, ...] = ()) -> list[Job]:
    """Return the jobs of the chosen runs, finished ones too; arguments and errors as in ``run``."""
    return [_job(run) for run in chosen_runs(recipe, only)]


def _steps(jobs: Sequence[Job]) -> dict[str, int]:
    trains = {job.run.label: job.run.recipe.train for job in jobs}
    return {
        label: 0 if train.control in ("random", "teacher_lr") else train.steps
        for label, train in trains.items()
    }


def _job(run: Run) -> Job:
    store = locations.store_folder(run.recipe)
    read_marker(store, run=f"make embed RECIPE={run.recipe.name}")
    return Job(run, store, locations.run_folder(run), locations.run_config(run), locations.run_inputs(run))


def _table(jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> Table:
    # Of runs with a classifier: what it answers for held-out clips.
    scores = [name for name in SCORES if any(name in outcome.summary for outcome in outcomes.values())]
    titles = (name.replace("_", " ") for name in scores)
    table = Table("run", "steps", "validation loss", "neighbour overlap", "effective rank", *titles, "folder")
    for job in jobs:
        outcome = outcomes[job.run.label]
        summary = outcome.summary
        rank = _figure(summary, "effective_rank", ".1f")
        table.add_row(
            job.run.label,
            str(summary.get("steps", outcome.state)),
            _figure(summary, "validation_loss", ".4f"),
            _figure(summary, "validation_neighbour_overlap", ".3f"),
            f"{rank} collapsed" if summary.get("collapsed") else rank,
            *(_figure(summary, name, ".3f") for name in scores),
            str(job.folder),
        )
    return table


def _figure(summary: dict[str, Any], name: str, form: str) -> str:
    value = summary.get(name)
    return "-" if value is None else format(value, form)
