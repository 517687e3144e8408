"""``ossicle sweep``: search a recipe's keys for the best run.

The sweep's folder holds::

    journal.log       the study, unless sweep.storage names a place that machines share
    space.json        the space as it was understood
    trials.parquet    one row a trial
    best.toml         the best trial as a recipe: `ossicle distill best.toml` finds its run finished
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe, SweepConfig
from pipeline.errors import TrainingError
from pipeline.search import crew, results, space_check, toml_text
from pipeline.search import space as spaces
from pipeline.search import sweep as sweeps
from pipeline.search.metric import metric_of
from pipeline.search.space import Space
from pipeline.search.study import Sampling, SharedStudy, counted, shown
from pipeline.training.pool import limit_of
from stages import locations, trial_jobs
from stages.trial_display import TrialDisplay

BEST, SPACE = "best.toml", "space.json"
SHOWN = 10


def run(
    recipe: Recipe,
    *,
    console: Console,
    space: Path | None = None,
    dimensions: dict[str, Any] | None = None,
    only: str | None = None,
    trials: int | None = None,
    storage: str | None = None,
) -> Path:
    """Run what is left of the study of ``recipe`` and its space; any number of processes may do so together.

    Args:
        recipe: its ``sweep`` and ``selection`` sections say how.
        console: for bars and the table.
        space: TOML file of the space; added to ``sweep.space``.
        dimensions: of the command line; added to both.
        only: the run of the recipe that is varied; default its headline, or its first.
        trials: of the whole study, in place of ``sweep.trials``.
        storage: in place of ``sweep.storage``.

    Returns:
        The sweep's folder.

    Raises:
        ConfigError: a key or value of the space is impossible; nothing was done.
        MissingArtifactError: the store, or an array that the space asks for, is not there.
        TrainingError: every trial failed.
        KeyboardInterrupt: stopped; running trials have their checkpoints and are queued again.
    """
    found, where = _space(recipe.sweep, space, dimensions or {})
    base = spaces.applied(trial_jobs.base_of(recipe, only), found.fixed)
    space_check.check(found, base, check_data=_check_data, where=where)
    job = trial_jobs.job_of(base)
    metric = metric_of(recipe.selection, base, found, [job])
    selection = recipe.selection.model_dump(mode="json", exclude=set() if metric.probe else {*_PROBE_KEYS})
    work = trial_jobs.identity("sweep", {"space": found.to_json(), "selection": selection}, base)
    folder = artifact.folder_for(locations.root(recipe), "sweep", recipe.name, work)
    place = trial_jobs.storage_of(storage or recipe.sweep.storage, folder)
    sampling = Sampling(recipe.sweep.sampler, recipe.sweep.startup_trials, recipe.sweep.seed)
    budget = trials or recipe.sweep.trials
    if recipe.sweep.sampler == "grid":
        budget = min(budget, found.combinations())
    study = SharedStudy(
        place, folder.name, [metric.direction], sampling, sweeps.pruner_of(recipe.sweep, base)
    )
    artifact.write_json(folder / SPACE, found.to_json())
    study.requeue_failed()
    so_far = counted(study.trials())
    trial_jobs.announce(console, "sweep", study, shown(place), budget, so_far)
    slots = limit_of(recipe.jobs, base.train.threads)
    try:
        with TrialDisplay(console, "sweep", budget, so_far) as display:
            sweep = sweeps.Sweep(study, found, base, metric, trial_jobs.job_of, display.report)
            crew.work(study, budget=budget, slots=slots, suggest=found.suggest, body=sweep.body)
    except KeyboardInterrupt:
        console.print(f"sweep: stopped; the same command goes on with study {study.name}", markup=False)
        raise
    finally:
        frame = results.table(study.trials(), [metric.name])
        results.write(folder, frame)
    best = _best(frame, metric.name, metric.direction)
    if best is None:
        raise TrainingError(
            "no trial of the sweep has a result", expected=f"a {metric.name}",
            got="; ".join(sorted({str(reason) for reason in frame["reason"] if reason}))[:300] or "no trial",
            run=f"see {folder / results.TABLE}",
        )  # fmt: skip
    _write_best(folder, study, found, base, best, metric.name)
    console.print(_table(frame, found, metric.name, metric.direction))
    summary = {
        "metric": metric.name,
        "best": float(frame[metric.name][best]),
        "trial": int(frame["trial"][best]),
    }
    artifact.finish(
        folder, kind="sweep", config={"study": work, "trials": len(frame)}, inputs=job.inputs, summary=summary
    )
    console.print(f"sweep: best recipe in {folder / BEST}", markup=False)
    return folder


_PROBE_KEYS = ("label_column", "probe", "probe_rows", "test_folds", "random_floors")


def _check_data(key: str, recipe: Recipe) -> None:
    """Raise unless the store holds every array that ``recipe``, changed at ``key``, trains on."""
    trial_jobs.job_of(recipe)


def _space(sweep: SweepConfig, path: Path | None, dimensions: dict[str, Any]) -> tuple[Space, str]:
    table = {**sweep.space, **(spaces.read_table(path) if path is not None else {}), **dimensions}
    where = str(path) if path is not None else "--set" if dimensions else "sweep.space"
    return spaces.parse(table, where), where


def _best(frame: pd.DataFrame, metric: str, direction: str) -> int | None:
    if not len(frame) or not (frame["outcome"] == "done").any():
        return None
    done = np.flatnonzero(frame["outcome"] == "done")
    values = frame[metric].to_numpy(dtype=float)[done]
    return int(done[values.argmin() if direction == "minimize" else values.argmax()])


def _write_best(folder: Path, study: SharedStudy, space: Space, base: Recipe, best: int, metric: str) -> None:
    from optuna.trial import FixedTrial

    trial = study.trial(best)
    chosen = spaces.applied(base, space.suggest(FixedTrial(trial.params)))
    chosen = recipes.change(chosen, {"name": f"{base.name}_best"})
    comments = (
        f"Trial {trial.number} of {study.name}: {metric} {trial.values[0]:.6g}.",
        f"Its run: {trial.user_attrs['folder']}",
    )
    artifact.write_bytes(folder / BEST, toml_text.recipe_text(chosen, comments).encode())


def _table(frame: pd.DataFrame, space: Space, metric: str, direction: str) -> Table:
    counted = frame["outcome"].value_counts()
    table = Table(
        "trial", metric, "steps", *(d.key for d in space.dimensions), "run",
        title=", ".join(f"{number} {outcome}" for outcome, number in counted.items()), title_justify="left",
    )  # fmt: skip
    done = frame[frame["outcome"] == "done"].sort_values(
        metric, ascending=direction == "minimize", kind="stable"
    )
    for _, row in done.head(SHOWN).iterrows():
        values = (_shown(row.get(d.key)) for d in space.dimensions)
        table.add_row(
            str(row["trial"]), f"{row[metric]:.4f}", f"{row['steps']:.0f}", *values, str(row["folder"])
        )
    return table


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
