"""Suites in ``ossicle evaluate``: tracks embedded once as whole and as seconds, all of a suite's tasks scored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import Progress

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, NothingToTellApartError
from pipeline.evaluation import dear_table, probe_answers, vector_store
from pipeline.evaluation.clip_vectors import ClipVectors
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.dear_table import DearTracks
from pipeline.evaluation.scoring import Score
from pipeline.evaluation.split_scoring import described, heard_tasks, score_split_tasks
from pipeline.evaluation.split_task import SplitTask
from pipeline.evaluation.suite import Suite, read_suite, suite_names
from pipeline.evaluation.track_vectors import embed_tracks
from stages import locations
from stages.evaluate_statistics import Statistics

PREDICTIONS = "predictions"


@dataclass(frozen=True)
class ChosenSuite:
    """A suite and its tracks; ``look_alike``: they were made by ``ossicle scenes``, and compare with no paper's."""

    suite: Suite
    tracks: DearTracks
    look_alike: bool = False


@dataclass
class SuiteScores:
    """What ``scores.json`` says of suites, and the whole tracks' embeddings for structure and maps.

    Attributes:
        rows: of every task, and of the suite's mean.
        tasks: their descriptions.
        differences: paired, on the same draws of tracks.
        vectors: suite to embeddings of its tracks.
        frames: suite to ``clip_id`` and ``label`` (the environment) of its tracks.
    """

    rows: list[Score] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    vectors: dict[str, ClipVectors] = field(default_factory=dict)
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)


def choose(recipe: Recipe) -> list[ChosenSuite]:
    """Return the suites that the recipe names among its tasks or audio roots.

    Raises:
        ConfigError: one has no folder.
        MissingArtifactError: its table or a track is not there.
        ManifestError: its table cannot be used.
    """
    folder, roots = recipes.DATA_MANIFESTS / "suites", recipe.evaluate.audio_roots
    found = []
    for name in suite_names(folder):
        if name in roots:
            suite, tracks = read_suite(name, folder), dear_table.read(roots[name])
            generated = artifact.is_finished(roots[name]) and artifact.read(roots[name]).kind == "scenes"
            found.append(ChosenSuite(_generated(suite, tracks) if generated else suite, tracks, generated))
        elif name in recipe.evaluate.tasks:
            raise ConfigError(
                f"suite {name!r} needs its audio", expected=f"a folder with {dear_table.TABLE}",
                run=f"--set evaluate.audio_roots.{name}=FOLDER",
            )  # fmt: skip
    return found


def score(
    recipe: Recipe,
    suites: list[ChosenSuite],
    comparison: Comparison,
    folder: Path,
    console: Console,
    progress: Progress,
    statistics: Statistics,
) -> SuiteScores:
    """Score every model on every task of ``suites``; the test rows' predictions go to ``predictions/*.parquet``.

    Args:
        recipe: grid, resamples and seed.
        suites: of :func:`choose`.
        comparison: the models.
        folder: of the evaluation.
        console: for what is left out.
        progress: bars are added to it.
        statistics: calibration and few-shot accuracy are added to it.

    Raises:
        AudioError: not one track can be decoded.
        ConfigError: a model cannot hear a whole track.
        ManifestError: a split of a task has nothing to tell apart.
    """
    found = SuiteScores()
    for chosen in suites:
        name, tracks = chosen.suite.name, chosen.tracks
        tasks, without = posed_tasks(chosen)
        for title, error in without.items():
            console.print(f"evaluate: {name}: {title} is left out: {error.problem}")
        bar = progress.add_task(f"evaluate {name}: tracks", total=len(tracks.paths))
        vectors = embed_tracks(
            tracks.paths, tracks.audio_digests, tracks.seconds, comparison.embedders,
            locations.root(recipe) / vector_store.FOLDER,
            lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),  # type: ignore[misc]
        )  # fmt: skip
        tasks = heard_tasks(
            tasks, {"track": np.asarray(vectors.heard.any(axis=1)), "second": vectors.heard.ravel()}
        )
        bar = progress.add_task(f"evaluate {name}: probes", total=len(tasks) * len(comparison.models))
        made = score_split_tasks(
            tasks, comparison.models, {"track": vectors.tracks, "second": vectors.seconds}, recipe.evaluate, name,
            lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),  # type: ignore[misc]
            cache=locations.root(recipe) / probe_answers.FOLDER,
        )  # fmt: skip
        for task in tasks:
            embeddings = vectors.tracks if task.unit == "track" else vectors.seconds
            statistics.add_split_task(task, comparison.models, embeddings, made, recipe.evaluate, console)
        for name_of_task, table in made.predictions.items():
            artifact.write_bytes(
                folder / PREDICTIONS / f"{name_of_task}.parquet", table.to_parquet(index=False)
            )
        found.rows += made.rows
        found.differences += [{**asdict(one), "decided": one.decided} for one in made.differences]
        kind = {"suite": name, "look_alike": chosen.look_alike}
        found.tasks += [{**described(task, chosen.suite.licence), **kind} for task in tasks]
        found.tasks.append(
            _mean_described(chosen, list(without), [asdict(clip) for clip in vectors.unusable])
        )
        found.vectors[name] = ClipVectors(vectors.tracks, vectors.unusable)
        found.frames[name] = pd.DataFrame(
            {"clip_id": tracks.ids, "label": tracks.cells["environmentClass"]}
        ).replace({"label": {"": "no label"}})
        edges = [row for row in made.rows if row.at_edge]
        if edges:
            console.print(
                f"evaluate: {name}: {len(edges)} of {len(made.rows)} probes chose the first or last of evaluate.grid "
                "(at_edge in scores.json)"
            )
    return found


def posed_tasks(chosen: ChosenSuite) -> tuple[list[SplitTask], dict[str, NothingToTellApartError]]:
    """Return the suite's tasks; of generated scenes those that their settings pose, and by title why not the others.

    Raises:
        ManifestError: a label is impossible; a task has nothing to tell apart, and these are no generated scenes
            (a mean is comparable with published ones only where it is over all tasks), or none has.
    """
    if not chosen.look_alike:
        return dear_table.tasks(chosen.tracks, chosen.suite.name), {}
    tasks, without = dear_table.possible_tasks(chosen.tracks, chosen.suite.name)
    if not tasks:
        raise next(iter(without.values()))
    return tasks, without


def _mean_described(
    chosen: ChosenSuite, without: list[str], unusable: list[dict[str, Any]]
) -> dict[str, Any]:
    suite, tracks = chosen.suite, chosen.tracks
    about = (
        suite.about if not without else f"{suite.about} Without {', '.join(without)}: nothing to tell apart."
    )
    return {
        "name": suite.name, "title": suite.title, "about": about, "licence": suite.licence,
        "metric": "mean of Matthews correlation and R2", "labelled": True, "clips": len(tracks.paths),
        "groups": len(tracks.paths), "unit": "track", "classes": {}, "folds": [0],
        "test_rows": int(tracks.held_out.sum()), "test_groups": int(tracks.held_out.sum()), "left_out": {},
        "unusable": unusable, "suite": suite.name, "look_alike": chosen.look_alike,
    }  # fmt: skip


def _generated(suite: Suite, tracks: DearTracks) -> Suite:
    """Return the suite as it is on tracks of ``ossicle scenes``."""
    return suite.model_copy(
        update={
            "title": f"Look-alike of {suite.title}",
            "about": f"{len(tracks.paths)} tracks of {tracks.seconds} s made by ossicle scenes, with the labels of "
            f"{suite.name.upper()}: comparable with each other, not with published numbers.",
            "licence": "of every source clip: licences.parquet of the scenes",
        }
    )
