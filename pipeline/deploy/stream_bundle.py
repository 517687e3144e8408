"""A causal student's files beside the whole-clip ones: its step in float32 and int8, and how late it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifact
from pipeline.config import ExportConfig
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_stream import OnnxStream
from pipeline.deploy.sessions import open_session, run_session
from pipeline.deploy.stream_export import check_stream, export_stream, timing_of
from pipeline.deploy.stream_int8 import quantise_stream
from pipeline.students.normalised import NormalisedStudent

STREAM_FP32 = "student_stream_fp32.onnx"
STREAM_JSON = "student_stream.json"
PRECISIONS = ("s8s8", "u8s8")


def write_streams(
    student: NormalisedStudent,
    folder: Path,
    *,
    rows: CalibrationRows,
    inputs: Sequence[np.ndarray],
    settings: ExportConfig,
    metadata: ExportMetadata,
) -> dict[str, Any]:
    """Write ``student_stream_fp32.onnx``, with ``settings.int8`` also ``student_stream_{s8s8,u8s8}.onnx``.

    ``student_stream.json`` says beside them: ``timing`` (:func:`~.stream_export.timing_of`), ``state_bytes``,
    ``parity`` of the float step with torch on whole signals, ``int8`` of each precision.

    Args:
        student: causal.
        folder: of the export; the whole-clip int8 files in it are what the int8 streams are compared with.
        rows: of the store, to calibrate and to judge.
        inputs: log-mels ``(batch, 1, mels, frames)`` for parity, of any lengths.
        settings: the recipe's ``export`` section.
        metadata: of the run.

    Returns:
        What the JSON file holds.

    Raises:
        ConfigError: the student is not causal.
        ParityError: the step's stream does not end where torch does on the whole signal.
    """
    step = folder / STREAM_FP32
    export_stream(student, step, metadata=metadata, opset=settings.opset)
    parity = check_stream(student, step, inputs, tolerance=settings.parity_atol)
    report: dict[str, Any] = {
        "timing": timing_of(student, metadata.frontend),
        "state_bytes": OnnxStream(step).state_bytes,
        "file_bytes": step.stat().st_size,
        "parity": parity.as_json(),
        "int8": {},
    }
    if settings.int8:
        files = {name: folder / f"student_{name}.onnx" for name in PRECISIONS}
        whole = {name: _whole(path, rows.held_out) for name, path in files.items() if path.is_file()}
        targets = {name: folder / f"student_stream_{name}.onnx" for name in PRECISIONS}
        found = quantise_stream(step, targets, rows=rows, config=settings, metadata=metadata, whole=whole)
        report["int8"] = {one.precision: one.as_json() for one in found}
    artifact.write_json(folder / STREAM_JSON, report)
    return report


def _whole(path: Path, log_mels: np.ndarray) -> np.ndarray:
    """Return the whole-clip file's embedding of each row."""
    session = open_session(path)
    return np.concatenate([run_session(session, log_mels[[row]]) for row in range(len(log_mels))])
