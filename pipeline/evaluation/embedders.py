"""Everything that turns windows into embeddings: teachers, students, ONNX files, and the log-mel floors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import ValidationError

from pipeline import artifact, config
from pipeline.config import LogMelConfig, StudentConfig, TeacherConfig
from pipeline.errors import ConfigError, MissingArtifactError, MissingDependencyError, WeightsError
from pipeline.evaluation.window_batch import WindowBatch
from pipeline.frontends.log_mel import LogMel
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import SavedStudent, load_student, read_description
from pipeline.teachers.base import Teacher
from pipeline.teachers.registry import build_teacher

TEACHER_PREFIX = "teacher:"
_METADATA_FRONTEND = "ossicle.frontend"
# Without it x86 runs parts of a signed int8 graph in float, which ARM does not.
_EXACT_INT8 = "session.qdqisint8allowed"


class Embedder(Protocol):
    """A model as evaluation sees it."""

    def digest(self) -> str:
        """Return the digest of everything its embeddings depend on, the windows apart."""
        ...

    def embed(self, batch: WindowBatch) -> Float32[np.ndarray, "windows dim"]:
        """Return the embedding of every window."""
        ...


class TeacherEmbedder:
    """A teacher of the registry; it hears the windows resampled to its own rate, as stage 1 does."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def digest(self) -> str:
        """Return the teacher's digest."""
        return self.teacher.digest()

    def embed(self, batch: WindowBatch) -> Float32[np.ndarray, "windows dim"]:
        """Return the teacher's embedding of every window."""
        return self.teacher.embed(batch.at_rate(self.teacher.sample_rate_hz))["embedding"].numpy()


class StudentEmbedder:
    """A student in float32 torch.

    Args:
        student: with its normalisation.
        frontend: the log-mel it hears.
        identity: what names its weights.
    """

    def __init__(self, student: NormalisedStudent, frontend: LogMelConfig, identity: dict[str, Any]) -> None:
        self.student, self.frontend, self.identity = student.eval(), LogMel(frontend), identity

    def digest(self) -> str:
        """Return the digest of the weights' identity and the frontend."""
        return config.digest(
            {"student": self.identity, "frontend": self.frontend.config.model_dump(mode="json")}
        )

    def embed(self, batch: WindowBatch) -> Float32[np.ndarray, "windows dim"]:
        """Return the student's embedding of every window."""
        return self.embed_log_mels(batch.log_mel(self.frontend).numpy())

    def embed_log_mels(
        self, log_mels: Float32[np.ndarray, "rows mels frames"]
    ) -> Float32[np.ndarray, "rows dim"]:
        """Return the student's embedding of log-mels of its own frontend."""
        with torch.inference_mode():
            embedding = self.student(torch.from_numpy(log_mels))
        return np.asarray(embedding.float().numpy())


class OnnxEmbedder:
    """An exported student, float or int8, by ONNX Runtime on one thread; its metadata names the frontend.

    Raises:
        MissingArtifactError: no such file.
        WeightsError: ONNX Runtime refuses it, or it carries no frontend.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                "ONNX files need onnxruntime", run="pip install 'ossicle[deploy]'"
            ) from error
        if not path.is_file():
            raise MissingArtifactError("no ONNX file", expected=str(path), run="ossicle export RECIPE")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry(_EXACT_INT8, "1")
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # ONNX Runtime's exception classes derive from Exception directly and are not public.
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise WeightsError(
                f"{path} is no ONNX file that runs here", got=str(error).splitlines()[0], run="ossicle export RECIPE"
            ) from error  # fmt: skip
        self.frontend = LogMel(_frontend_of(path, self.session.get_modelmeta().custom_metadata_map))
        self._file_digest = artifact.file_digest(path)

    def digest(self) -> str:
        """Return the digest of the file."""
        return config.digest({"onnx": self._file_digest})

    def embed(self, batch: WindowBatch) -> Float32[np.ndarray, "windows dim"]:
        """Return the file's output for every window."""
        return self.embed_log_mels(batch.log_mel(self.frontend).numpy())

    def embed_log_mels(
        self, log_mels: Float32[np.ndarray, "rows mels frames"]
    ) -> Float32[np.ndarray, "rows dim"]:
        """Return the file's output for log-mels of its own frontend."""
        # A file with a classifier has its logits as a second output.
        first = self.session.get_outputs()[0].name
        (embedding,) = self.session.run([first], {self.session.get_inputs()[0].name: log_mels[:, None]})
        return np.asarray(embedding, dtype=np.float32)


class LogMelEmbedder:
    """The floor without any network: each mel band's mean over time, or its mean and standard deviation."""

    def __init__(self, frontend: LogMelConfig, *, deviation: bool) -> None:
        self.frontend, self.deviation = LogMel(frontend), deviation

    def digest(self) -> str:
        """Return the digest of the frontend's constants."""
        constants = self.frontend.config.model_dump(mode="json")
        return config.digest({"log_mel": constants, "deviation": self.deviation})

    def embed(self, batch: WindowBatch) -> Float32[np.ndarray, "windows dim"]:
        """Return (windows, mels) or (windows, 2 mels)."""
        log_mel = batch.log_mel(self.frontend)
        parts = [log_mel.mean(dim=2)]
        if self.deviation:
            parts.append(log_mel.std(dim=2, correction=0))
        return np.asarray(torch.cat(parts, dim=1).numpy())


def run_embedder(folder: Path) -> StudentEmbedder:
    """Return the student saved in a run or export folder.

    Raises:
        MissingArtifactError: there is none.
        WeightsError: damaged, or not what it says it is.
    """
    saved = read_description(folder)
    return StudentEmbedder(load_student(folder), saved.frontend, {"weights_sha256": saved.weights_sha256})


def random_embedder(student: StudentConfig, like: SavedStudent, seed: int) -> StudentEmbedder:
    """Return ``student`` as it is initialised from ``seed``, with the log-mel statistics and frontend of ``like``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NormalisedStudent(build_student(student, like.mels), like.mean, like.std)
    identity = {"random": student.model_dump(mode="json"), "seed": seed, "mean": like.mean, "std": like.std}
    return StudentEmbedder(network, like.frontend, identity)


def open_embedder(reference: str, teacher: TeacherConfig, cache: Path | None = None) -> Embedder:
    """Return the model that a user names: ``teacher:NAME``, an ONNX file, or a run or export folder.

    Args:
        reference: what the user wrote.
        teacher: device, dtype and batch size for a teacher.
        cache: folder of downloads.

    Raises:
        ConfigError: it is none of these.
    """
    if reference.startswith(TEACHER_PREFIX):
        name = reference.removeprefix(TEACHER_PREFIX)
        return TeacherEmbedder(build_teacher(teacher.model_copy(update={"name": name}), cache=cache))
    path = Path(reference)
    if path.suffix == ".onnx":
        return OnnxEmbedder(path)
    if path.is_dir():
        return run_embedder(path)
    raise ConfigError(
        f"no model is called {reference!r}", expected="teacher:NAME, a run folder or an .onnx file", got=reference
    )  # fmt: skip


def _frontend_of(path: Path, properties: dict[str, str]) -> LogMelConfig:
    try:
        return LogMelConfig.model_validate(json.loads(properties[_METADATA_FRONTEND]))
    except (KeyError, json.JSONDecodeError, ValidationError) as error:
        raise WeightsError(
            f"{path} does not say which log-mel it hears",
            expected=f"metadata property {_METADATA_FRONTEND}", run="ossicle export RECIPE",
        ) from error  # fmt: skip
