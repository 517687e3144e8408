"""An ONNX file of anyone's as a model to score: what it hears is declared as a graph teacher's is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from pipeline import artifact
from pipeline.audio import resampling
from pipeline.audio.windows import frame_count
from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.embedders import Embedder
from pipeline.evaluation.window_batch import SAMPLE_RATE_HZ, WindowBatch
from pipeline.options import parse_options
from pipeline.teachers.base import Teacher
from pipeline.teachers.graph import GraphOptions, GraphTeacher
from pipeline.teachers.onnx_graph import build_onnx, checked_model

UNSTATED = "not stated"
OWN_PROPERTY = "ossicle.frontend"


class WaveformEmbedder:
    """A teacher, or a graph as one, at its own sample rate: evaluation's windows are resampled for it."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def digest(self) -> str:
        """Return the teacher's digest."""
        return self.teacher.digest()

    def embed(self, batch: WindowBatch) -> Float32[np.ndarray, "windows dim"]:
        """Return the embedding of every window."""
        rows = [
            resampling.resample(row, SAMPLE_RATE_HZ, self.teacher.sample_rate_hz)
            for row in batch.waveforms.numpy()
        ]
        made = self.teacher.embed(torch.from_numpy(np.stack(rows)))["embedding"]
        return np.asarray(made.numpy(), dtype=np.float32)


def is_own(path: Path) -> bool:
    """Whether an ONNX file says which log-mel it hears, as ``ossicle export`` writes it.

    Raises:
        WeightsError: it is no ONNX file.
        MissingDependencyError: onnx is not installed.
    """
    model, _ = checked_model(path)
    return any(entry.key == OWN_PROPERTY for entry in model.metadata_props)


def open_graph(path: Path, given: Mapping[str, Any], window_seconds: float) -> tuple[Embedder, GraphTeacher]:
    """Return an ONNX file that is not of ``ossicle export``, on the CPU in float32.

    Args:
        path: the file. Naming it is trusting it; files of custom operators are refused all the same.
        given: keys of :class:`GraphOptions`. ``embedding`` may be left out where the file has one output, and
            ``window_samples`` where it takes any number of samples.
        window_seconds: windows that are scored, the default of ``window_samples``.

    Raises:
        WeightsError: it is no ONNX file, or cannot be run.
        ConfigError: a key is missing, unknown, or does not fit the file.
    """
    model, _ = checked_model(path)
    keys = dict(given)
    outputs = [value.name for value in model.graph.output]
    shapes = ", ".join(f"{value.name} {_shape(value)}" for value in (*model.graph.input, *model.graph.output))
    if "sample_rate_hz" not in keys:
        raise ConfigError(
            f"{path.name} does not say what it hears", expected="sample_rate_hz, and what docs/compare.md lists",
            got=f"tensors {shapes}", run="ossicle compare ... --option sample_rate_hz=16000",
        )  # fmt: skip
    if "embedding" not in keys:
        if len(outputs) != 1:
            raise ConfigError(
                f"{path.name} has {len(outputs)} outputs; which is the embedding?", expected=" or ".join(outputs),
                got="no option embedding", run=f"ossicle compare ... --option embedding={(outputs or ['NAME'])[0]}",
            )  # fmt: skip
        keys["embedding"] = outputs[0]
    own = f"{path.name} (as declared)"
    options = parse_options(GraphOptions, own, {"licence": UNSTATED, "citation": UNSTATED, **keys})
    if options.input == "waveform" and options.window_samples is None and not _is_fixed(model):
        keys["window_samples"] = frame_count(window_seconds, options.sample_rate_hz)
    keys = {"licence": UNSTATED, "citation": UNSTATED, **keys}
    config = TeacherConfig(
        name="onnx", weights=path, trust_sha256=artifact.file_digest(path), options=keys, dtype="float32"
    )
    teacher = build_onnx(config)
    return WaveformEmbedder(teacher), teacher


def _is_fixed(model: Any) -> bool:
    """Whether the first input's last axis has one size."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    dimensions = inputs[0].type.tensor_type.shape.dim if inputs else []
    return bool(dimensions) and dimensions[-1].dim_value > 0


def _shape(value: Any) -> str:
    sizes = [str(d.dim_value or d.dim_param or "any") for d in value.type.tensor_type.shape.dim]
    return "(" + ", ".join(sizes) + ")"
