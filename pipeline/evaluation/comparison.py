"""Which models stand side by side: every run, its int8 file, its random floor, its teacher, the log-mel floors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import artifact, config
from pipeline.config import EmbedConfig, LogMelConfig, StudentConfig, TeacherConfig
from pipeline.errors import DigestMismatchError
from pipeline.evaluation.embedders import (
    TEACHER_PREFIX,
    Embedder,
    LogMelEmbedder,
    OnnxEmbedder,
    StudentEmbedder,
    TeacherEmbedder,
    open_embedder,
    random_embedder,
    run_embedder,
)
from pipeline.evaluation.scoring import INT8, LABELS, LOG_MEL, RANDOM, REFERENCE, STUDENT, TEACHER, Model
from pipeline.students.saved import DESCRIPTION_FILE, SavedStudent, read_description

ROLE_OF_CONTROL = {"none": STUDENT, "random": RANDOM, "labels": LABELS}


@dataclass
class Comparison:
    """Models and what computes them, by key, in the order of the tables.

    ``overlaps``: neighbour overlap with the teacher on the store's validation rows, of runs that measured it.
    """

    models: dict[str, Model] = field(default_factory=dict)
    embedders: dict[str, Embedder] = field(default_factory=dict)
    overlaps: dict[str, float] = field(default_factory=dict)
    _likes: dict[str, tuple[StudentConfig, SavedStudent]] = field(default_factory=dict)

    def add(self, model: Model, embedder: Embedder) -> None:
        """Add a model; the same key twice is one model."""
        self.models[model.key] = model
        self.embedders[model.key] = embedder

    def add_teacher(self, settings: EmbedConfig, cache: Path | None) -> None:
        """Add the recipe's teacher."""
        name = settings.teacher.name
        embedder = open_embedder(f"{TEACHER_PREFIX}{name}", settings.teacher, cache)
        self.add(Model(file_key(f"teacher-{name}"), TEACHER, name, source=embedder.digest()), embedder)

    def add_other_teachers(
        self,
        names: Sequence[str],
        settings: EmbedConfig,
        cache: Path | None,
        declared: Mapping[str, TeacherConfig] | None = None,
    ) -> None:
        """Add further teachers, to compare with; the recipe's own is passed over.

        Args:
            names: as the tables call them.
            settings: the recipe's own teacher, whose keys those have that ``declared`` does not list.
            cache: folder of downloads.
            declared: keys of teachers by name.
        """
        for name in names:
            if name != settings.teacher.name:
                own = (declared or {}).get(name)
                given = settings.teacher if own is None else own
                embedder = open_embedder(f"{TEACHER_PREFIX}{name if own is None else own.name}", given, cache)
                self.add(
                    Model(file_key(f"teacher-{name}"), REFERENCE, name, source=embedder.digest()), embedder
                )

    def add_log_mel(self, frontend: LogMelConfig) -> None:
        """Add the two floors without a network."""
        for deviation, name in ((False, "mean"), (True, "mean_std")):
            embedder = LogMelEmbedder(frontend, deviation=deviation)
            self.add(Model(f"log_mel-{name}", LOG_MEL, name, source=embedder.digest()), embedder)

    def add_run(self, name: str, seed: int, control: str, folder: Path) -> None:
        """Add one trained run (or control) from its folder."""
        record, saved = artifact.read(folder), read_description(folder)
        role, floor = ROLE_OF_CONTROL[control], floor_key(saved)
        key = file_key(f"{name}-seed{seed}")
        self.add(Model(key, role, name, seed, floor, record.digest), run_embedder(folder))
        if role != RANDOM:
            self._likes.setdefault(floor, (saved.student, saved))
        overlap = record.summary.get("validation_neighbour_overlap")
        if overlap is not None:
            self.overlaps[key] = overlap

    def add_int8(self, name: str, seed: int, run_folder: Path, onnx: Path) -> None:
        """Add a run's int8 file.

        Raises:
            DigestMismatchError: the export beside the file is not of this run's weights.
        """
        run, exported = read_description(run_folder), read_description(onnx.parent)
        if run.weights_sha256 != exported.weights_sha256:
            raise DigestMismatchError(
                f"{onnx} was not exported from {run_folder}", expected=run.weights_sha256[:12],
                got=exported.weights_sha256[:12], run="ossicle export RECIPE",
            )  # fmt: skip
        key = file_key(f"{name}-seed{seed}-int8")
        embedder = OnnxEmbedder(onnx)
        self.add(Model(key, INT8, name, seed, floor_key(run), embedder.digest()), embedder)

    def add_reference(self, reference: str, settings: EmbedConfig, cache: Path | None) -> None:
        """Add what a user named: ``teacher:NAME``, a run or export folder, or an ONNX file."""
        embedder = open_embedder(reference, settings.teacher, cache)
        source = embedder.digest()
        if isinstance(embedder, TeacherEmbedder):
            name = embedder.teacher.name
            role = TEACHER if name == settings.teacher.name else STUDENT
            self.add(Model(file_key(f"teacher-{name}"), role, name, source=source), embedder)
            return
        path = Path(reference)
        name = path.stem if path.suffix == ".onnx" else path.resolve().name
        folder = path.parent if path.suffix == ".onnx" else path
        floor = ""
        if (folder / DESCRIPTION_FILE).is_file():
            saved = read_description(folder)
            floor = floor_key(saved)
            self._likes.setdefault(floor, (saved.student, saved))
        self.add(Model(file_key(f"model-{name}"), STUDENT, name, None, floor, source), embedder)

    def add_missing_floors(self, count: int) -> None:
        """Add ``count`` random initialisations of every student that has no random run, seeds from 1."""
        covered = {model.floor for model in self.models.values() if model.role == RANDOM}
        for floor, (student, like) in self._likes.items():
            if floor in covered:
                continue
            name = f"random_{student.name}_w{student.width:g}-{floor[:6]}"
            for seed in range(1, count + 1):
                embedder: StudentEmbedder = random_embedder(student, like, seed)
                key = file_key(f"{name}-seed{seed}")
                self.add(Model(key, RANDOM, name, seed, floor, embedder.digest()), embedder)


def floor_key(saved: SavedStudent) -> str:
    """Return what a student shares with its floor: network, width and frontend."""
    return config.digest(
        {"student": saved.student.model_dump(mode="json"), "frontend": saved.frontend.model_dump(mode="json")}
    )


def file_key(name: str) -> str:
    """Return ``name`` with everything that does not belong into a file name replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
