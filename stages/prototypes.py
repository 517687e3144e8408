"""``ossicle prototypes``: files in which a device learns classes from a few clips, and how well it does.

The folder holds ``prototypes_<encoder>.onnx`` (of a causal run also ``prototypes_stream_<encoder>.onnx``),
``prototypes.json`` (every figure) and ``embeddings/`` (clip vectors).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline import artifact
from pipeline import manifest as manifests
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, near_matches
from pipeline.evaluation import clips as task_clips
from pipeline.evaluation import vector_store
from pipeline.evaluation.clip_vectors import ClipVectors, embed_clips
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.comparison import file_key
from pipeline.evaluation.embedders import open_embedder
from pipeline.evaluation.task import read_task
from pipeline.evaluation.window_batch import Windowing
from pipeline.prototypes import class_clips, episodes, models, teaching
from pipeline.prototypes.bank import Metric, Scaling
from pipeline.prototypes.episodes import Classifier
from pipeline.prototypes.models import LOG_MEL, Encoder
from pipeline.prototypes.onnx_bank import write_bank
from stages import locations, run_records
from stages.console import progress_bar

RESULT = "prototypes.json"
KB = 1024.0
FILES = {"fp32": "student_fp32.onnx", "s8s8": "student_s8s8.onnx"}


@dataclass(frozen=True)
class Options:
    """What the command line says of the bank.

    Attributes:
        shots: clips a class.
        metric: ``cosine`` or ``euclidean``.
        features: ``raw``, ``centred`` or ``standardised``; None: raw for encoders, centred for the log-mel.
        neighbours: 0 = prototypes, else so many of the stored clips vote.
        slots: further classes, or stored clips, that the file has room for.
        episodes: how many are scored.
        seed: of episodes and of the clips that the file is taught.
    """

    shots: int = 5
    metric: str = "cosine"
    features: str | None = None
    neighbours: int = 0
    slots: int = 4
    episodes: int = 500
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: naming the option.
        """
        if self.metric not in get_args(Metric):
            raise ConfigError("--metric is none that there is", expected=get_args(Metric), got=self.metric)
        if self.features is not None and self.features not in get_args(Scaling):
            raise ConfigError(
                "--features is none that there is", expected=get_args(Scaling), got=self.features
            )
        for name, least in (("shots", 1), ("neighbours", 0), ("slots", 0), ("episodes", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} is too small", expected=f">= {least}", got=getattr(self, name))

    def classifier(self, encoder: Encoder) -> Classifier:
        """Return what is fitted on this encoder's embeddings."""
        scaling = self.features or encoder.scaling
        return Classifier(self.metric, scaling, self.neighbours, encoder.int8)  # type: ignore[arg-type]


def run(
    model: str,
    classes: str,
    *,
    recipe: Recipe,
    options: Options,
    console: Console,
    label: str = "label",
    group: str | None = None,
    beside: Sequence[str] = (),
    to: Path | None = None,
) -> Path:
    """Teach ``model`` the classes, write its files and score it over episodes; the log-mel is always scored beside.

    Args:
        model: a run's or export's folder, an exported ONNX file, or ``log-mel`` for no encoder at all.
        classes: a folder with a folder a class, a CSV or Parquet table, or the name of a task.
        recipe: window length, windows a clip, audio roots of tasks, teacher's options.
        options: of the bank.
        console: for the bar and the table.
        label, group: columns of a table; a recording (group) is never both taught and asked for.
        beside: further models to score: ``teacher:NAME``, folders, ONNX files.
        to: where to write; default ``artifacts/prototypes/<model>-<classes>``.

    Returns:
        The folder.

    Raises:
        ConfigError: an option that cannot be, an unknown task, or too few clips.
        MissingArtifactError: no such model, table or folder.
        ManifestError: the clips cannot be read as classes.
        ParityError: a written file does not score as its bank does.
    """
    options.check()
    clips = _clips(classes, recipe, label, group)
    encoders = [*_encoders(model, recipe), *_compared(beside, recipe)]
    frontend = next((e.frontend for e in encoders if e.frontend is not None), recipe.embed.frontend)
    if model != LOG_MEL:
        # The floor: what a device too small for any encoder would have.
        encoders += [
            Encoder(e.key, None, e.embedder, e.frontend, e.int8, e.scaling)
            for e in models.of_log_mel(frontend)
        ]
    name = LOG_MEL if model == LOG_MEL else file_key(Path(model).resolve().stem)
    folder = to or locations.root(recipe) / "prototypes" / f"{name}-{file_key(clips.task.name)}"
    found = _embed(clips, encoders, recipe, console)
    vectors, heard = found.embeddings, found.heard
    labels = clips.frame["label"].to_numpy(dtype=str)
    groups = clips.frame["group"].to_numpy(dtype=str)
    kept = episodes.usable_classes(labels[heard], groups[heard], options.shots)
    for left in sorted(set(labels) - set(kept)):
        console.print(f"prototypes: class {left} has too few clips for {options.shots} shots, left out")
    of_class = np.array([kept.index(one) if one in kept else -1 for one in labels])
    of_class[~heard] = -1
    drawn = list(
        episodes.draw_episodes(
            of_class, groups, shots=options.shots, episodes=options.episodes, seed=options.seed
        )
    )
    frames = frontend.frames(round(recipe.embed.window_seconds * frontend.sample_rate_hz))
    rows = []
    for encoder in encoders:
        embeddings, classifier = vectors[encoder.key], options.classifier(encoder)
        scored = episodes.score_episodes(embeddings, of_class, groups, drawn, classifier, seed=options.seed)
        taught = teaching.teach(embeddings, of_class, drawn[0], classifier, spare_slots=options.slots)
        row: dict[str, Any] = {
            "encoder": encoder.key, "classifier": asdict(classifier), "dim": int(embeddings.shape[1]),
            "few_shot": scored.as_json(), "rejection": taught.rejection.as_json(),
            "bank_bytes": taught.bank_bytes, "bank_macs": taught.bank_macs,
            "encoder_bytes": encoder.file_bytes, "encoder_macs": encoder.macs(frames), "file": None,
        }  # fmt: skip
        if encoder.file is not None and encoder.frontend is not None:
            path = folder / f"prototypes_{encoder.key}.onnx"
            described = {
                "shots": options.shots, "threshold": taught.rejection.as_json(), "taught_clips": len(drawn[0].support),
                "enrol": "p' = (n p + sum of the features taught) / (n + how many); give the class of each window",
            }  # fmt: skip
            names = [*kept, *([""] * options.slots)] if not options.neighbours else kept
            stream = folder / f"prototypes_stream_{encoder.key}.onnx"
            for source, target in ((encoder.file, path), (encoder.step, stream)):
                if source is not None:
                    write_bank(
                        source, target, features=taught.features, bank=taught.bank, classes=names,
                        int8=encoder.int8, described=described,
                    )  # fmt: skip
            row["parity"] = teaching.check_file(path, encoder.file, taught, encoder.frontend.mels)
            row["file"], row["file_bytes"] = path.name, path.stat().st_size
        rows.append(row)
    record = {
        "schema": "ossicle-prototypes/1", "model": model, "classes": kept, "task": clips.task.name,
        "clips": int((of_class >= 0).sum()), "recordings": len(set(groups[of_class >= 0])),
        "window_frames": frames, "options": asdict(options), "rows": rows, "provenance": artifact.provenance(),
    }  # fmt: skip
    artifact.write_json(folder / RESULT, record)
    console.print(table(record))
    return folder


def table(record: dict[str, Any]) -> Table:
    """Return the figures of ``prototypes.json`` as a table."""
    options = record["options"]
    title = (
        f"{options['shots']} clips a class, {len(record['classes'])} classes of {record['task']}, "
        f"{options['episodes']} episodes"
    )
    shown = Table(title=title, title_justify="left")
    shown.add_column("encoder")
    for heading in (
        "accuracy %", "95 % over recordings", "+- over episodes", "AUROC unknown", "encoder KB", "k MACs a window",
        "bank bytes", "bank k MACs",
    ):  # fmt: skip
        shown.add_column(heading, justify="right")
    for row in record["rows"]:
        found = row["few_shot"]
        auroc = row["rejection"]["auroc"]
        shown.add_row(
            row["encoder"],
            f"{100 * found['accuracy']:.1f}",
            f"{100 * found['low']:.1f} to {100 * found['high']:.1f}",
            f"{100 * found['episodes_half_width']:.1f}",
            "-" if auroc is None else f"{auroc:.3f}",
            "-" if row["encoder_bytes"] is None else f"{row['encoder_bytes'] / KB:,.0f}",
            "-" if row["encoder_macs"] is None else f"{row['encoder_macs'] / 1e3:,.0f}",
            f"{row['bank_bytes']:,}",
            f"{row['bank_macs'] / 1e3:.1f}",
        )
    return shown


def _clips(classes: str, recipe: Recipe, label: str, group: str | None) -> TaskClips:
    path = Path(classes)
    if path.is_dir():
        return class_clips.of_folder(path)
    if path.is_file() or path.suffix in (".csv", ".parquet"):
        return class_clips.of_table(path, label, group)
    folder = recipes.DATA_MANIFESTS / "tasks"
    known = [found.stem for found in folder.glob("*.toml")]
    if classes not in known:
        raise ConfigError(
            f"--classes {classes} is no folder, table or task",
            expected=near_matches(classes, known),
            got=classes,
        )
    task = read_task(classes, folder)
    if task.audio.source == "csv":
        roots = recipe.evaluate.audio_roots
        if classes not in roots:
            raise ConfigError(
                f"task {classes!r} needs its audio", expected=f"a folder with {task.audio.file}",
                run=f"--set evaluate.audio_roots.{classes}=FOLDER",
            )  # fmt: skip
        return task_clips.from_csv(task, roots[classes])
    found = task_clips.from_manifest(task, manifests.read(locations.manifest_folder(recipe)))
    if found is None:
        raise ConfigError(
            f"the manifest of {recipe.name} holds no clips of {task.audio.dataset}", got=classes
        )
    return found


def _encoders(model: str, recipe: Recipe) -> list[Encoder]:
    if model == LOG_MEL:
        return models.of_log_mel(recipe.embed.frontend)
    path = Path(model)
    if path.suffix == ".onnx":
        return [models.of_file(path)]
    export = run_records.find(model).export.folder
    return [models.of_file(export / file, key) for key, file in FILES.items() if (export / file).is_file()]


def _compared(beside: Sequence[str], recipe: Recipe) -> list[Encoder]:
    found = []
    for reference in beside:
        embedder = open_embedder(reference, recipe.embed.teacher, recipe.paths.cache)
        path = Path(reference)
        inner = f"{path.resolve().parent.name}/{path.stem}" if path.suffix == ".onnx" else path.name
        found.append(Encoder(file_key(reference if ":" in reference else inner), None, embedder))
    return found


def _embed(clips: TaskClips, encoders: list[Encoder], recipe: Recipe, console: Console) -> ClipVectors:
    """Return each encoder's clip vectors; clips that cannot be decoded are named."""
    windowing = Windowing(recipe.embed.window_seconds, recipe.evaluate.max_windows_per_clip)
    with progress_bar(console, remaining=True) as progress:
        bar = progress.add_task(f"embed {clips.task.name}", total=len(clips.frame))
        vectors = embed_clips(
            clips, {one.key: one.embedder for one in encoders}, windowing,
            locations.root(recipe) / vector_store.FOLDER,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    for clip in vectors.unusable:
        console.print(f"prototypes: {clip.path} cannot be used ({clip.reason}), left out")
    return vectors
