"""``ossicle qat``: fine-tune trained runs through int8's rounding, on the store's cached targets alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.config import Recipe
from pipeline.errors import ConfigError
from pipeline.quantisation.job import QatJob
from pipeline.ranks import Rank
from pipeline.recipe import Run
from pipeline.store.commits import read_marker
from pipeline.training.pool import Outcome
from stages import locations
from stages.run_choice import chosen_students, trained_runs
from stages.run_training import train_apart

WORKER = "pipeline.quantisation.worker"


def run(recipe: Recipe, *, console: Console, only: Sequence[str] = ()) -> Path:
    """Fine-tune every finished run that is no control and is not done yet, several at a time.

    Args:
        recipe: its ``[qat]`` section says how, ``[export]`` what is quantised; ``jobs`` how many processes.
        console: for the bars and the table.
        only: run names or labels (``name-seed0``); controls are fine-tuned when named here.

    Returns:
        The run's folder, or the folder of all where there are several.

    Raises:
        ConfigError: ``only`` names no run; or a launcher started several processes.
        MissingArtifactError: none of the chosen runs is trained yet.
        TrainingError: a run failed; the others were trained all the same.
        KeyboardInterrupt: stopped; every run has its checkpoint.
    """
    rank = Rank.of_environment()
    if rank.world > 1:
        raise ConfigError(
            "ossicle qat trains each run in one process", expected="1 process", got=f"{rank.world} processes",
            run=f"ossicle qat {recipe.name}, without a launcher",
        )  # fmt: skip
    chosen = chosen_students(recipe, only, "qat")
    jobs = [_job(run) for run in trained_runs(chosen, recipe, "qat", "quantise", console)]
    steps = {job.run.label: job.run.recipe.qat.steps for job in jobs}
    train_apart(recipe, jobs, console, command="qat", steps=steps, table=_table, worker=WORKER)
    return jobs[0].folder if len(jobs) == 1 else locations.root(recipe) / "qat"


def _job(run: Run) -> QatJob:
    store = locations.store_folder(run.recipe)
    read_marker(store, run=f"make embed RECIPE={run.recipe.name}")
    return QatJob(
        run, store, locations.qat_folder(run), locations.qat_config(run), locations.qat_inputs(run),
        locations.run_folder(run),
    )  # fmt: skip


def _table(jobs: Sequence[QatJob], outcomes: Mapping[str, Outcome]) -> Table:
    table = Table(title="int8, calibrated and trained, against float32", title_justify="left")
    table.add_column("run")
    for heading in (
        "steps",
        "centred cosine",
        "trained",
        "neighbour overlap",
        "trained",
        "probe drop",
        "trained",
    ):
        table.add_column(heading, justify="right")
    table.add_column("folder")
    for job in jobs:
        outcome = outcomes[job.run.label]
        summary = outcome.summary
        if not summary:
            table.add_row(job.run.label, outcome.state, *["-"] * 6, str(job.folder))
            continue
        before, after = summary["before"], summary["after"]
        table.add_row(
            job.run.label,
            str(summary["steps"]),
            f"{before['centred_cosine']:.4f}",
            f"{after['centred_cosine']:.4f}",
            f"{before['neighbour_overlap']:.3f}",
            f"{after['neighbour_overlap']:.3f}",
            _drop(summary, before),
            _drop(summary, after),
            str(job.folder),
        )
    return table


def _drop(summary: dict[str, Any], fidelity: dict[str, Any]) -> str:
    whole, own = summary["float_probe_score"], fidelity["probe_score"]
    return "-" if whole is None or own is None else f"{100 * (whole - own):+.1f}"
