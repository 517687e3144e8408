"""A trained student on disk: ``student.safetensors`` and ``student.json``, all that later stages need."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pipeline import artifact
from pipeline.config import LogMelConfig, Section, StudentConfig
from pipeline.errors import MissingArtifactError, WeightsError
from pipeline.students.checkpoint_file import DESCRIPTION_FILE as DESCRIPTION_FILE
from pipeline.students.checkpoint_file import WEIGHTS_FILE as WEIGHTS_FILE
from pipeline.students.initial import StartedFrom
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student


class TeacherCredit(Section):
    """Whose embeddings the student learnt, for the metadata of every exported file."""

    name: str
    licence: str
    citation: str = ""


class SavedStudent(Section):
    """The content of ``student.json``."""

    schema_version: Literal["ossicle-student/1"] = "ossicle-student/1"
    student: StudentConfig = Field(
        description="the recipe's section: name, width, embedding_dim and its own keys"
    )
    embedding_dim: int = Field(gt=0, description="width of the embedding the network gives")
    parameters: int = Field(ge=0, description="trainable numbers, projector not among them")
    mels: int = Field(gt=0)
    mean: float = Field(description="of the training rows' log-mel")
    std: float = Field(gt=0, description="of the training rows' log-mel")
    frontend: LogMelConfig = Field(description="every constant of the log-mel it was trained on")
    teacher: TeacherCredit | None = Field(None, description="None where no teacher taught it")
    started_from: StartedFrom | None = Field(None, description="None where it started at random")
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of student.safetensors")


def save_student(
    folder: Path,
    student: NormalisedStudent,
    config: StudentConfig,
    frontend: LogMelConfig,
    teacher: TeacherCredit | None = None,
    started_from: StartedFrom | None = None,
) -> SavedStudent:
    """Write ``student`` into ``folder`` and return its description; the description is written last.

    Args:
        folder: a run's folder; made if absent.
        student: what :func:`build_student` gave for ``config``, trained, with its normalisation.
        config: the recipe's ``student`` section.
        frontend: the log-mel it was trained on.
        teacher: who taught it; None for the controls.
        started_from: what ``student.weights`` gave; None where it started at random.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}
    content = save_tensors(state)
    saved = SavedStudent(
        student=config.model_copy(update={"weights": None, "trust_sha256": None}),
        embedding_dim=student.embedding_dim,
        parameters=sum(p.numel() for p in student.parameters()),
        mels=frontend.mels,
        mean=float(student.mean),
        std=float(student.std),
        frontend=frontend,
        teacher=teacher,
        started_from=started_from,
        weights_sha256=hashlib.sha256(content).hexdigest(),
    )
    artifact.write_bytes(folder / WEIGHTS_FILE, content)
    artifact.write_json(folder / DESCRIPTION_FILE, saved.model_dump(mode="json"))
    return saved


def read_description(folder: Path) -> SavedStudent:
    """Return what ``student.json`` of a run or export folder says, without loading any weights.

    Raises:
        MissingArtifactError: there is no ``student.json``.
        WeightsError: it is not one of this version's.
    """
    content = _read(folder / DESCRIPTION_FILE)
    try:
        record: Any = json.loads(content)
        return SavedStudent.model_validate(record)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise WeightsError(
            f"{folder / DESCRIPTION_FILE} does not describe a student",
            expected="the student.json that this version of ossicle writes",
            got=str(error).splitlines()[0],
            run="ossicle distill RECIPE",
        ) from error


def load_student(folder: Path) -> NormalisedStudent:
    """Return the student saved in ``folder``, on the CPU and in evaluation mode.

    Raises:
        MissingArtifactError: a file is absent.
        WeightsError: the weights are damaged, not those described, or do not fit the network.
    """
    saved = read_description(folder)
    path = folder / WEIGHTS_FILE
    content = _read(path)
    got = hashlib.sha256(content).hexdigest()
    if got != saved.weights_sha256:
        raise WeightsError(
            f"{path} is not the file that {DESCRIPTION_FILE} describes",
            expected=f"SHA-256 {saved.weights_sha256}",
            got=got,
            run="ossicle distill RECIPE (after removing this run's folder)",
        )
    student = NormalisedStudent(build_student(saved.student, saved.mels), saved.mean, saved.std)
    try:
        student.load_state_dict(load_tensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"{path} does not fit the network {saved.student.name!r}",
            expected=f"the tensors of {saved.student.name} at width {saved.student.width:g}",
            got=str(error),
            run="ossicle distill RECIPE (after removing this run's folder)",
        ) from error
    return student.eval()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingArtifactError(
            "no trained student is here", expected=path, got="no such file", run="ossicle distill RECIPE"
        ) from error
