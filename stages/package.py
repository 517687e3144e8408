"""``ossicle package``: a trained student as one folder or archive that anyone can use, and nobody has to ask about."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pandas
from rich.console import Console

from pipeline.config import LogMelConfig
from pipeline.deploy.package import archive, content, hub
from pipeline.deploy.package.facts import Facts, Model, Score, absent_figures, datasets_of
from pipeline.deploy.package.licences import OTHER, hub_licence
from pipeline.errors import MissingArtifactError
from pipeline.store.location import Place, at
from pipeline.store.schema import CLIPS_FILE, read_meta
from pipeline.students.classifier import read_classes
from pipeline.students.saved import SavedStudent, read_description
from stages import locations, run_records, shipped_file
from stages.run_records import RunRecords

OWN = "the packager's own; no teacher's licence applies"


def run(
    name: str,
    *,
    console: Console,
    to: Path | None = None,
    store: str | None = None,
    licence: str | None = None,
    push: str | None = None,
    private: bool = False,
) -> Path:
    """Write the package of one exported run.

    Args:
        name: a run's or an export's folder.
        console: for what was written and what forbids commercial use.
        to: a folder, or a file that ends in .zip or .tar.gz; default ``package/`` beside the run's artifacts.
        store: where the run's store is, if not among the artifacts.
        licence: of the weights; default the teacher's.
        push: ``OWNER/NAME`` on a model hub that gets the package too.
        private: whether a repository that the push makes is private.

    Returns:
        The folder or archive.

    Raises:
        MissingArtifactError: no such run, it is not exported, or its store is not there.
        ConfigError: the target holds other files, or the push lacks a name or a token.
        MissingDependencyError: the push lacks huggingface_hub.
    """
    if push is not None:
        # Before any work: what makes the push impossible is known now.
        hub.check_repository(push)
        hub.token()
    records = run_records.find(name)
    facts = gather(records, store=None if store is None else locations.place_of(store), licence=licence)
    target = to if to is not None else records.root / "package" / facts.name
    if not archive.is_archive(target):
        archive.check_replaceable(target)
    files, why_no_c99 = content.package_files(facts, records.export.folder)
    archive.write(files, target, facts.name)
    total = sum(map(len, files.values()))
    console.print(f"package: {target}: {len(files)} files, {total / 1024:,.0f} KB; ship {facts.shipped.file}")
    if why_no_c99:
        console.print(f"package: no C program without ONNX Runtime: {why_no_c99}", markup=False)
    if facts.non_commercial:
        console.print(
            f"package: NON-COMMERCIAL: made from {'; '.join(facts.non_commercial)}", style="bold red"
        )
    for sentence in facts.missing:
        console.print(f"package: {sentence}")
    if push is not None:
        console.print(f"package: pushed to {_push(files, facts, push, private)}")
    return target


def gather(records: RunRecords, *, store: Place | None = None, licence: str | None = None) -> Facts:
    """Return what the card will say, from the artifacts of a run."""
    export = records.export
    saved = read_description(export.folder)
    place = run_records.store_of(records, store)
    costs = run_records.costs_of(records)
    ship, why = shipped_file.choose(export, costs)
    models = content.student_files(export.folder, ship)
    scores = tuple(_score(row, models) for row in run_records.scores_of(records))
    classes = read_classes(export.folder)
    return Facts(
        name=f"{records.label}-{export.digest[:12]}",
        saved=saved,
        run=records.run,
        export=export,
        window_seconds=_window_seconds(place, saved.frontend),
        datasets=datasets_of(pandas.read_parquet(io.BytesIO(at(place).read(CLIPS_FILE)))),
        models=models,
        why_shipped=why,
        scores=scores,
        costs=tuple(costs),
        labels=None if classes is None else tuple(classes),
        licence=_licence(saved, licence),
        missing=absent_figures(models, scores, costs),
    )


def _window_seconds(place: Place, frontend: LogMelConfig) -> float:
    meta = read_meta(at(place))
    given = meta.windowing.get("embed", {}).get("window_seconds")
    if given is not None:
        return float(given)
    # A store imported from elsewhere says how many frames a window has, not how long it was.
    frames = [spec.row_shape[1] for spec in meta.arrays if spec.kind == "spectrogram"]
    if not frames:
        raise MissingArtifactError(
            "the store holds no log-mel, so its windows have no length", got=str(place)
        )
    samples = (frames[0] - 1) * frontend.hop_length + (0 if frontend.center else frontend.n_fft)
    return samples / frontend.sample_rate_hz


def _score(row: dict[str, Any], models: tuple[Model, ...]) -> Score:
    task, structure = row["described"], row["structure"] or {}
    precision = next((model.precision for model in models if model.file == row["file"]), "fp32")
    return Score(
        task=row["task"], title=task["title"], task_licence=task["licence"], metric=task["metric"],
        clips=task["clips"], groups=task["groups"], probe=row["probe"], precision=precision, score=row["score"],
        low=row["low"], high=row["high"], teacher=row["teacher"],
        neighbour_overlap=structure.get("neighbour_overlap"), neighbours=structure.get("neighbours"),
    )  # fmt: skip


def _licence(saved: SavedStudent, given: str | None) -> tuple[str, str]:
    credits_ = [credit.licence for credit in (saved.teacher, saved.started_from) if credit is not None]
    text = given or " + ".join(dict.fromkeys(filter(None, credits_))) or OWN
    return (OTHER if " + " in text else hub_licence(text)), text


def _push(files: dict[str, bytes], facts: Facts, repository: str, private: bool) -> str:
    with tempfile.TemporaryDirectory(prefix="ossicle-push-") as scratch:
        folder = Path(scratch) / facts.name
        archive.write(files, folder, facts.name)
        return hub.push(folder, repository, message=f"{facts.name} by ossicle package", private=private)
