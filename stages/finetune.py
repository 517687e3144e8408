"""``ossicle finetune``: train teachers on the manifest's labels, one member after the other, and score them."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from pipeline import artifact
from pipeline import manifest as manifests
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, near_matches
from pipeline.finetuning.job import HELD_OUT_FILE, Member, identity, inputs_of, member_label, run_member
from pipeline.manifest import Manifest
from pipeline.recipe import Run
from pipeline.students.classifier import read_classes
from pipeline.training.confusion import described, ensemble, write_confusion
from pipeline.training.loop import Progress, TrainingStopped
from stages import locations

KIND = "finetune"


def run(recipe: Recipe, *, console: Console, only: tuple[str, ...] = ()) -> Path:
    """Train every member of ``recipe`` that is not finished: its runs, once for each held-out fold.

    Args:
        recipe: the recipe; its manifest must be there.
        console: where progress and the table of members go.
        only: names or labels of members; empty = all.

    Returns:
        The member's folder, which ``run:FOLDER`` takes, or the folder of the scores where there are several.

    Raises:
        MissingArtifactError: the manifest is not finished.
        ConfigError: ``only`` names no member.
        KeyboardInterrupt: stopped; the member has its checkpoint.
    """
    manifest = manifests.read(locations.manifest_folder(recipe))
    members = members_of(recipe, manifest, only)
    cache = locations.root(recipe) / KIND / "waveforms"
    for member in members:
        if artifact.is_finished(member.folder, member.work):
            console.print(f"finetune: {member.label} is finished, reused")
            continue
        try:
            _train(member, manifest, cache, console)
        except TrainingStopped as stopped:
            console.print(
                f"finetune: stopped at step {stopped.step}, checkpoint written; "
                f"to go on: ossicle finetune {recipe.name} (same options)"
            )
            raise KeyboardInterrupt from None
    scores = locations.root(recipe) / KIND / f"{recipe.name}-scores"
    console.print(_table(members, _scored(members, scores)))
    return members[0].folder if len(members) == 1 else scores


def members_of(recipe: Recipe, manifest: Manifest, only: tuple[str, ...] = ()) -> list[Member]:
    """Return the chosen members, finished ones too; arguments and errors as in ``run``."""
    made = [
        _member(one, fold, manifest)
        for one in _runs(recipe)
        for fold in one.recipe.finetune.held_out_folds or (None,)
    ]
    known = {m.label for m in made} | {m.run.name for m in made} | {m.run.label for m in made}
    for name in only:
        if name not in known:
            raise ConfigError(
                f"the recipe has no member {name!r}", expected=near_matches(name, known), got=name
            )
    chosen = set(only)
    return [m for m in made if not chosen or chosen & {m.label, m.run.name, m.run.label}]


def _runs(recipe: Recipe) -> list[Run]:
    """Return the recipe's runs; where it lists none, the one is called after what is trained."""
    runs, teacher = recipes.expand(recipe), recipe.finetune.teacher
    if recipe.runs or teacher is None:
        return runs
    return [replace(one, name=teacher.name.split(":")[0]) for one in runs]


def _member(run: Run, fold: int | None, manifest: Manifest) -> Member:
    config, inputs = identity(run, fold), inputs_of(run, manifest)
    work = artifact.identity("run", config, inputs)
    name = f"{run.recipe.name}-{member_label(run, fold)}"
    return Member(
        run, fold, artifact.folder_for(locations.root(run.recipe), KIND, name, work), config, inputs
    )


def _train(member: Member, manifest: Manifest, cache: Path, console: Console) -> None:
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[figures]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with _asked_to_stop() as asked, Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(f"{member.label}: decoding", total=None, figures="")

        def on_decode(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        def on_progress(progress: Progress) -> None:
            figures = f"loss {progress.loss:.4f}  {progress.samples_per_second:,.0f} clips/s"
            bars.update(
                task, description=member.label, completed=progress.step, total=progress.steps, figures=figures
            )

        made = run_member(
            member,
            manifest,
            cache,
            on_decode=on_decode,
            on_progress=on_progress,
            should_stop=lambda: asked[0],
        )
    console.print(f"finetune: {member.label}: accuracy {made.summary['accuracy']:.3f}; in {member.folder}")


@contextmanager
def _asked_to_stop() -> Iterator[list[bool]]:
    """Give a list whose entry becomes true at the first Ctrl-C; the second one interrupts at once."""
    asked = [False]

    def note(number: int, frame: FrameType | None) -> None:
        asked[0] = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _scored(members: list[Member], folder: Path) -> dict[str, Any]:
    """Write and return accuracy a member, a fold, and of the members' averaged logits; the pooled confusion."""
    by_fold: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        by_fold["validation" if member.fold is None else str(member.fold)].append(member)
    classes = read_classes(members[0].folder) or []
    folds: dict[str, Any] = {}
    pooled: np.ndarray = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for fold, group in by_fold.items():
        found = [np.load(member.folder / HELD_OUT_FILE, allow_pickle=False) for member in group]
        if any(read_classes(m.folder) != classes for m in group):
            raise ConfigError(
                "members learnt other classes", expected="one finetune.label_column for all runs"
            )
        accuracy, matrix = ensemble([one["logits"] for one in found], found[0]["truth"])
        pooled += matrix
        folds[fold] = {
            "members": {m.run.label: artifact.read(m.folder).summary["accuracy"] for m in group},
            "ensemble": accuracy,
            "clips": len(found[0]["truth"]),
        }
    scores = {
        "folds": folds,
        "mean_accuracy": float(np.mean([a for f in folds.values() for a in f["members"].values()])),
        "mean_ensemble_accuracy": float(np.mean([f["ensemble"] for f in folds.values()])),
        "folders": {member.label: str(member.folder) for member in members},
        "confusion": described(pooled, classes),
    }
    if len(members) > 1:
        artifact.write_json(folder / "scores.json", scores)
        write_confusion(folder, pooled, classes, "all folds, averaged logits")
    return scores


def _table(members: list[Member], scores: dict[str, Any]) -> Table:
    table = Table("member", "held-out fold", "clips", "accuracy", "folder")
    for member in members:
        fold = "validation" if member.fold is None else str(member.fold)
        of_fold = scores["folds"][fold]
        table.add_row(
            member.label,
            fold,
            str(of_fold["clips"]),
            f"{of_fold['members'][member.run.label]:.3f}",
            str(member.folder),
        )
    if len(members) > 1:
        table.add_row("mean", "", "", f"{scores['mean_accuracy']:.3f}", "")
    if len({member.run.label for member in members}) > 1:
        table.add_row("averaged logits", "", "", f"{scores['mean_ensemble_accuracy']:.3f}", "")
    return table
