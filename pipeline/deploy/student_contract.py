"""The parts of the student's contract that need the exporter: ONNX with dynamic batch and time, and int8."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.config import ExportConfig, LogMelConfig, StudentConfig
from pipeline.contract import Finding, tried
from pipeline.deploy import int8
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import export_student
from pipeline.deploy.sessions import open_session, run_session
from pipeline.students.checker import FRAMES, Clips, measure_statistics
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student

BATCHES_AND_FRAMES = ((1, 1), (1, 96), (3, 100), (2, 333))
CALIBRATION_CLIPS, HELD_OUT_CLIPS = 32, 16
# Of a network at random weights; trained ones are judged by export.int8_min_cosine, with layers left in float.
LEAST_CENTRED_COSINE = 0.5


def check(config: StudentConfig, frontend: LogMelConfig, seed: int = 0) -> list[Finding]:
    """Export the student that ``config`` names at random weights, run the files and return what was found.

    Args:
        config: name, width, options.
        frontend: the log-mel it would hear.
        seed: of weights and clips.

    Raises:
        ConfigError: it cannot be built.
    """
    torch.manual_seed(seed)
    clips = Clips(frontend.mels, seed)
    student = NormalisedStudent(build_student(config, frontend.mels), mean=0.0, std=1.0)
    measure_statistics(student, clips)
    metadata = ExportMetadata(frontend, student=config.name)
    with tempfile.TemporaryDirectory(prefix="ossicle-contract-") as scratch:
        path = Path(scratch) / "student.onnx"
        exported = tried("ONNX, batch and time dynamic", lambda: _exported(student, path, metadata, clips))
        if not path.is_file():
            return [exported]
        return [exported, tried("int8", lambda: _quantised(path, metadata, clips))]


def _exported(
    student: NormalisedStudent, path: Path, metadata: ExportMetadata, clips: Clips
) -> Iterator[str]:
    export_student(student, path, metadata=metadata)
    session = open_session(path)
    shape = session.get_inputs()[0].shape
    if shape != ["batch", 1, clips.mels, "time"]:
        yield f"its input is {shape}, not ['batch', 1, {clips.mels}, 'time']"
    tolerance = ExportConfig().parity_atol
    for batch, frames in BATCHES_AND_FRAMES:
        log_mel = clips(batch, frames)
        with torch.no_grad():
            want = student(log_mel).numpy()
        got = run_session(session, log_mel.numpy())
        apart = float(np.abs(got - want).max() / max(float(np.abs(want).max()), 1e-30))
        if not apart <= tolerance:
            yield f"{batch} clips of {frames} frames: {apart:.2g} of the largest output from torch's"


def _quantised(path: Path, metadata: ExportMetadata, clips: Clips) -> Iterator[str]:
    rows = clips(CALIBRATION_CLIPS + HELD_OUT_CLIPS, FRAMES // 2).numpy()
    given = CalibrationRows(rows[:CALIBRATION_CLIPS], rows[CALIBRATION_CLIPS:], "dummy clips")
    # No fallback: what is wanted is whether every layer can be int8.
    config = ExportConfig(int8_min_cosine=-1.0, calibration_clips=CALIBRATION_CLIPS)
    for made in int8.quantise(path, path.parent, rows=given, config=config, metadata=metadata):
        if not made.centred_cosine >= LEAST_CENTRED_COSINE:
            yield (
                f"{made.precision}: with all layers in int8 the embeddings keep a centred cosine of "
                f"{made.centred_cosine:.2f} to float's"
            )
        session = open_session(path.parent / f"student_{made.precision}.onnx")
        if not np.isfinite(run_session(session, clips(3, 61).numpy())).all():
            yield f"{made.precision}: the embedding holds values that are not finite"
