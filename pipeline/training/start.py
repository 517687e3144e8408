"""Where training starts: a student at random, from a published checkpoint, or from a finished run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import ConfigError
from pipeline.run_folder import folder_of
from pipeline.store.reader import StoreReader
from pipeline.students import build_student, students
from pipeline.students.initial import load_initial
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.options import check_frontend
from pipeline.students.saved import SavedStudent, TeacherCredit, load_student, read_description
from pipeline.training.normalisation import global_statistics
from pipeline.training.rows import pieces


@dataclass(frozen=True)
class Start:
    """The student before its first step.

    Attributes:
        student: with its normalisation.
        teacher: whose embeddings it will have learnt, or learnt before; None for the controls.
        checkpoint: the published weights it starts from, as ``student.json`` tells them.
        summary: what the run's marker says of it.
    """

    student: NormalisedStudent
    teacher: TeacherCredit | None
    checkpoint: Any = None
    summary: dict[str, Any] = field(default_factory=dict)


def begin(recipe: Recipe, reader: StoreReader, training: np.ndarray) -> Start:
    """Return the student where training starts; torch's global generator is seeded by ``train.seed``.

    Raises:
        ConfigError: the run of ``train.start_from`` holds another student or heard another frontend, or
            ``student.weights`` is given too.
        MissingArtifactError: there is no such run.
        WeightsError: weights do not fit, or are not trusted.
    """
    config = recipe.train
    torch.manual_seed(config.seed)
    spec = reader.embedding
    credit = TeacherCredit(name=spec.name, licence=spec.licence, citation=spec.config.get("citation", ""))
    taught = credit if config.control == "none" else None
    if config.start_from is not None and config.control != "random":
        return _from_run(recipe, config.start_from, taught)
    check_frontend(students.get(recipe.student.name), recipe.student, recipe.embed.frontend)
    backbone = build_student(recipe.student, recipe.embed.frontend.mels)
    checkpoint = None
    if config.control != "random":
        checkpoint = load_initial(backbone, recipe.student, recipe.embed.frontend.mels)
    student = NormalisedStudent(backbone, *global_statistics(pieces(reader, training, "spectrogram")))
    if checkpoint is None:
        return Start(student, taught)
    return Start(student, taught, checkpoint, {"started_from": checkpoint.model_dump(mode="json")})


def _from_run(recipe: Recipe, name: str, taught: TeacherCredit | None) -> Start:
    if recipe.student.weights is not None:
        raise ConfigError(
            "train.start_from and student.weights are two places to start from", expected="one of them",
            got=f"{name} and {recipe.student.weights}", run="--set student.weights=null",
        )  # fmt: skip
    folder = folder_of(name)
    saved = read_description(folder)
    _require_same(recipe, saved, name)
    student = load_student(folder)
    # Weights know their input's scale: the run's own normalisation stays, whatever this store's rows are.
    return Start(
        student,
        taught or saved.teacher,
        summary={"start_from": {"run": folder.resolve().name, "digest": artifact.read(folder).digest}},
    )


def _require_same(recipe: Recipe, saved: SavedStudent, name: str) -> None:
    unlike = {
        f"student.{key}": (value, getattr(recipe.student, key))
        for key, value in saved.student
        if key not in ("weights", "trust_sha256") and value != getattr(recipe.student, key)
    }
    unlike |= {
        f"embed.frontend.{key}": (value, getattr(recipe.embed.frontend, key))
        for key, value in saved.frontend
        if value != getattr(recipe.embed.frontend, key)
    }
    if unlike:
        key, (theirs, ours) = next(iter(unlike.items()))
        raise ConfigError(
            f"{name} holds another student than the recipe describes ({', '.join(unlike)})",
            expected=f"{key} = {theirs}", got=ours, run=f"--set {key}={theirs}",
        )  # fmt: skip
