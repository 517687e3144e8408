"""What the report is made of, read from finished artifacts; whatever is absent becomes a note, never a crash."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifact
from pipeline.artifact import Artifact
from pipeline.config import Recipe
from pipeline.errors import MissingArtifactError, OssicleError
from pipeline.measure.extra_tables import ExtraTable
from pipeline.measure.extra_tables import read as read_extra_tables
from pipeline.recipe import Run, expand
from pipeline.store.reader import StoreReader
from stages import locations
from stages.report_page.palette import SHORT, role_order

SAMPLES_SHOWN = 8


@dataclass(frozen=True)
class RunEvidence:
    """One training run: its marker, its curves, and its export where there is one."""

    run: Run
    record: Artifact
    metrics: list[dict[str, Any]]
    export: Artifact | None

    @property
    def label(self) -> str:
        """``name-seedN``."""
        return self.run.label

    @property
    def control(self) -> str:
        """``none``, ``random`` or ``labels``."""
        return self.run.recipe.train.control

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return steps and values of one metric, without the points where it is missing or not finite."""
        points = [(m["step"], m[name]) for m in self.metrics if isinstance(m.get(name), int | float)]
        return [step for step, _ in points], [float(value) for _, value in points]


@dataclass(frozen=True)
class Sample:
    """One row of the store: what the student hears."""

    title: str
    log_mel: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Maps:
    """(clips, 2) maps of the same clips in several spaces, as (title, points), the teacher's first."""

    task: str
    labels: list[str]
    spaces: list[tuple[str, np.ndarray]]
    method: str = "t-SNE"


@dataclass
class Evidence:
    """Everything the page shows. ``missing`` holds one sentence a section that cannot be shown."""

    recipe: Recipe
    runs: list[RunEvidence] = field(default_factory=list)
    scores: dict[str, Any] | None = None
    maps: list[Maps] = field(default_factory=list)
    benchmark: dict[str, Any] | None = None
    layers: dict[str, Any] | None = None
    extra: list[ExtraTable] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    teacher_licence: str = ""
    searches: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> str | None:
        """The name of the run that comes first: the recipe's, or its first that is no control."""
        if self.recipe.headline is not None:
            return self.recipe.headline
        return next((r.run.name for r in self.runs if r.control == "none"), None)


def gather(recipe: Recipe) -> Evidence:
    """Read everything that is finished; each absent piece leaves a sentence that names the command to run."""
    evidence = Evidence(recipe)
    _runs(evidence)
    _scores(evidence)
    _benchmark(evidence)
    _samples(evidence)
    _searches(evidence)
    return evidence


def _runs(evidence: Evidence) -> None:
    recipe, waiting, unexported = evidence.recipe, [], []
    for run in expand(recipe):
        try:
            record = artifact.read(locations.run_folder(run))
        except OssicleError:
            waiting.append(run.label)
            continue
        export = None
        folder = locations.export_folder(run)
        if artifact.is_finished(folder):
            export = artifact.read(folder)
        elif run.recipe.train.control == "none":
            unexported.append(run.label)
        evidence.runs.append(RunEvidence(run, record, _metrics(record.folder), export))
    if waiting:
        evidence.missing["runs"] = f"Not trained: {', '.join(waiting)}. Run: ossicle distill {recipe.name}"
    if unexported:
        evidence.missing["export"] = (
            f"Not exported: {', '.join(unexported)}. Run: ossicle export {recipe.name}"
        )


def _metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _scores(evidence: Evidence) -> None:
    recipe = evidence.recipe
    hint = f"Not measured. Run: ossicle evaluate {recipe.name}"
    record = _finished(evidence, "evaluation", locations.evaluation_folder(recipe))
    if record is None:
        evidence.missing["scores"] = evidence.missing["maps"] = hint
        return
    evidence.scores = _json(record.folder / "scores.json")
    evidence.maps = _maps(_json(record.folder / "projections.json"), evidence.scores)
    if not evidence.maps:
        evidence.missing["maps"] = "No map was stored by the evaluation."


def _maps(projections: dict[str, Any], scores: dict[str, Any]) -> list[Maps]:
    models = {model["key"]: model for model in scores["models"]}
    found = []
    kinds = (("maps", "t-SNE"), ("umap", "UMAP"))
    given = [(task, of, kind, how) for task, of in projections.items() for kind, how in kinds if kind in of]
    for task, stored, kind, method in given:
        ordered = sorted(stored[kind].items(), key=lambda item: role_order(models[item[0]]["role"]))
        spaces = [
            (
                f"{SHORT.get(models[key]['role'], models[key]['role'])}: {models[key]['label']}",
                np.array(points),
            )
            for key, points in ordered
        ]
        if spaces:
            found.append(Maps(task, list(stored["label"]), spaces, method))
    return found


def _benchmark(evidence: Evidence) -> None:
    recipe = evidence.recipe
    record = _finished(evidence, "benchmark", locations.benchmark_folder(recipe))
    if record is None:
        evidence.missing["benchmark"] = f"Not measured. Run: ossicle benchmark {recipe.name}"
        return
    evidence.benchmark = _json(record.folder / "benchmark.json")
    if (record.folder / "layers.json").is_file():
        evidence.layers = _json(record.folder / "layers.json")
    exports = {row["export_digest"] for row in evidence.benchmark["rows"] if "export_digest" in row}
    evidence.extra = read_extra_tables(record.folder, exports)[0]


def _samples(evidence: Evidence) -> None:
    recipe = evidence.recipe
    try:
        reader = StoreReader(locations.store_folder(recipe), frontend=recipe.embed.frontend)
    except OssicleError as error:
        evidence.missing["store"] = f"{error.problem}. Run: ossicle embed {recipe.name}"
        return
    evidence.artifacts["store"] = reader.artifact
    evidence.datasets = _datasets(reader.rows)
    teacher = recipe.embed.teacher.name
    specs = [spec for spec in reader.meta.arrays if spec.kind == "embedding" and spec.name == teacher]
    evidence.teacher_licence = specs[0].licence if specs else ""
    config = recipe.embed.frontend
    size = reader.shard_sizes[0]
    rows = reader.rows.iloc[:size]
    spectrograms = reader.read_shard(0, arrays=("spectrogram",))["spectrogram"]
    for row in _varied(rows[rows["status"] == "ok"]):
        log_mel = spectrograms[row].astype(np.float32)
        described = rows.iloc[row]
        parts = [str(described[c]) for c in ("dataset", "label") if c in rows.columns and described[c]]
        view = str(described["view"]) if "view" in rows.columns else ""
        title = ", ".join(parts) if view in ("", "clean") or not parts else f"{view}: {parts[0]}"
        seconds = log_mel.shape[1] * config.hop_length / config.sample_rate_hz
        evidence.samples.append(Sample(title or view or f"row {row}", log_mel, seconds))


def _datasets(rows: Any) -> list[dict[str, Any]]:
    """Return the number of good windows of each dataset, and its licences."""
    if not {"dataset", "licence", "kind"} <= set(rows.columns):
        return []
    good = rows[rows["status"] == "ok"]
    return [
        {
            "dataset": str(name),
            "kind": ", ".join(sorted({str(kind) for kind in part["kind"]} - {""})),
            "licence": ", ".join(sorted({str(licence) for licence in part["licence"]} - {""})),
            "windows": len(part),
        }
        for name, part in good.groupby("dataset", sort=True)
    ]


def _varied(rows: Any) -> list[int]:
    """Return positions of rows of the first shard, as many views and datasets among them as there are."""
    kinds = [c for c in ("view", "dataset") if c in rows.columns]
    if not kinds:
        return [int(p) for p in rows["row"].head(SAMPLES_SHOWN)]
    firsts = rows.groupby(kinds, sort=True)["row"].first()
    by_view: dict[Any, list[int]] = {}
    for key, position in firsts.items():
        by_view.setdefault(key[0] if isinstance(key, tuple) else key, []).append(int(position))
    queues = list(by_view.values())
    chosen: list[int] = []
    while any(queues) and len(chosen) < SAMPLES_SHOWN:
        chosen += [queue.pop(0) for queue in queues if queue]
    return chosen[:SAMPLES_SHOWN]


def _searches(evidence: Evidence) -> None:
    """Read the recipe's finished budget searches, each of another space or other limits, the newest first."""
    folders = locations.search_folders(evidence.recipe)
    found = [artifact.read(folder) for folder in folders if artifact.is_finished(folder)]
    for record in sorted(found, key=lambda one: str(one.provenance.get("finished_at", "")), reverse=True):
        evidence.artifacts[f"search {record.folder.name}"] = record
        evidence.searches.append(_json(record.folder / "search.json"))


def _finished(evidence: Evidence, kind: str, folder: Path) -> Artifact | None:
    try:
        record = artifact.read(folder)
    except MissingArtifactError:
        return None
    evidence.artifacts[kind] = record
    return record


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
