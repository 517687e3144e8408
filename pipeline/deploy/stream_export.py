"""A causal student as an ONNX step: a block of frames and what is carried in, an embedding and what is carried out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import artifact
from pipeline.config import LogMelConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import INPUT, OUTPUT, export_graph
from pipeline.deploy.onnx_stream import NEXT, PROPERTY, Carried, OnnxStream
from pipeline.deploy.parity import Parity, ShapeParity
from pipeline.errors import ParityError
from pipeline.students.latency import latency
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.streaming import StreamingStep, causal_form_of

EXPORT_BATCH = 2
PORTIONS = 5


def export_stream(
    student: NormalisedStudent, path: Path, *, metadata: ExportMetadata, opset: int = 20
) -> None:
    """Write the step of a causal student: ``log_mel`` float32 (batch, 1, mels, step_frames) to ``embedding``.

    Every tensor that is carried is an input (``in_c.0.0.past``) and an output of the same shape
    (``in_c.0.0.past.next``); batch is dynamic. The property ``ossicle.stream`` lists them with their values before
    the first block, so that a device needs the file alone (:class:`~pipeline.deploy.onnx_stream.OnnxStream`), and
    says how late the student is by construction (:func:`timing_of`).

    Args:
        student: causal, with its normalisation.
        path: the file to write; written whole or not at all.
        metadata: embedded as ``metadata_props``; its frontend gives the number of mels.
        opset: ONNX operator set.

    Raises:
        ConfigError: the student is not causal.
        OssicleError: the exporter refuses the network.
    """
    mels = metadata.frontend.mels
    step = StreamingStep(student, mels)
    carried = step.initial(EXPORT_BATCH)
    block = torch.zeros(EXPORT_BATCH, 1, mels, step.step_frames)
    described: dict[str, Any] = {
        "step_frames": step.step_frames,
        "padding": 0.0 if student.backbone.normalises_input else float(student.mean),
        "carried": [
            _carried(name, value).as_json() for name, value in zip(step.names, step.initial(1), strict=True)
        ],
        "timing": timing_of(student, metadata.frontend),
    }
    batch: list[dict[int, str]] = [{0: "batch"} if value.ndim > 1 else {} for value in carried]
    with artifact.replacing(path) as temporary:
        export_graph(
            step,
            (block, *carried),
            temporary,
            input_names=[INPUT, *step.names],
            output_names=[OUTPUT, *(name + NEXT for name in step.names)],
            dynamic=({0: "batch"}, tuple(batch)),
            opset=opset,
        )
        extra = {**metadata.extra, PROPERTY: json.dumps(described)}
        metadata_props.embed(temporary, replace(metadata, extra=extra).properties())


def check_stream(
    student: NormalisedStudent, path: Path, inputs: Sequence[np.ndarray], *, tolerance: float
) -> Parity:
    """Compare the exported step, block by block to the signal's end, with torch on the whole signal.

    Args:
        student: what was exported.
        path: the ONNX file.
        inputs: log-mels ``(batch, 1, mels, frames)``, of any lengths.
        tolerance: largest difference allowed, as a share of the largest output.

    Raises:
        ParityError: an embedding is not finite, or differs by more.
    """
    found = []
    for array in inputs:
        stream = OnnxStream(path, batch=len(array))
        for portion in np.array_split(array[:, 0], PORTIONS, axis=2):
            stream.push(portion)
        with torch.no_grad():
            want = student(torch.from_numpy(array)).numpy()
        difference = float(np.abs(stream.finish() - want).max())
        row = ShapeParity(tuple(array.shape), difference, float(np.abs(want).max()))
        if not row.relative <= tolerance:
            raise ParityError(
                f"{path.name}: the stream does not end where torch does on the whole signal",
                expected=f"at most {tolerance:g} of the largest output at {row.shape}",
                got=f"{row.relative:.3g}",
            )
        found.append(row)
    return Parity(tuple(found), tolerance)


def timing_of(student: NormalisedStudent, frontend: LogMelConfig) -> dict[str, Any]:
    """Return a causal student's times behind ``frontend``, in milliseconds and frames, for a JSON file.

    ``step_ms`` is from one embedding to the next; ``algorithmic_ms`` and ``longest_ms`` are the latency for a sound
    at the end and at the beginning of a block (:class:`~pipeline.students.latency.Latency`).

    Raises:
        ConfigError: the student is not causal.
    """
    form, found = causal_form_of(student), latency(student, frontend)
    return {
        "window_ms": found.window_ms,
        "hop_ms": found.hop_ms,
        "step_frames": form.step_frames,
        "step_ms": form.step_frames * found.hop_ms,
        "memory_frames": form.memory_frames,
        "receptive_field_frames": found.field.frames,
        "receptive_field_ms": found.receptive_field_ms,
        "lookahead_frames": found.field.lookahead_frames,
        "algorithmic_ms": found.algorithmic_ms,
        "longest_ms": found.longest_ms,
    }


def _carried(name: str, value: Tensor) -> Carried:
    shape = tuple(value.shape) if value.ndim == 1 else (-1, *value.shape[1:])
    return Carried(name, shape, float(value.flatten()[0]))
