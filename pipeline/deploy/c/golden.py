"""Golden vectors for a device: a seeded signal, its log-mel by the numpy form, its embedding by ONNX Runtime's int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.deploy.c.writer import array, comment, number
from pipeline.deploy.sessions import open_session, run_session
from pipeline.frontends.constants import LogMelConstants
from pipeline.frontends.log_mel_numpy import NumpyLogMel

FRAMES = 25
SEED = 0


def golden_signal(config: LogMelConstants, frames: int) -> np.ndarray:
    """Return the int16 samples of ``frames`` frames: two tones that fade under noise at -30 dBFS."""
    samples = (frames - 1) * config.hop_length + (0 if config.center else config.n_fft)
    samples = max(samples, config.n_fft // 2 + 1)
    seconds = np.arange(samples) / config.sample_rate_hz
    tones = np.sin(2 * np.pi * 440.0 * seconds) + np.sin(2 * np.pi * 0.3 * config.sample_rate_hz * seconds)
    noise = np.random.default_rng(SEED).standard_normal(samples)
    signal = 0.2 * tones * np.exp(-4.0 * seconds / seconds[-1]) + 0.03 * noise
    rounded: np.ndarray = np.clip(np.rint(signal * 32768), -32768, 32767).astype(np.int16)
    return rounded


def golden_header(source: Path, config: LogMelConstants, step: float | None, *, max_frames: int) -> str:
    """Return the header that ``check.c`` compares with.

    Args:
        source: the int8 ONNX file.
        config: of the frontend.
        step: quantisation step of the embedding; None where it is float there: a thousandth of the largest number.
        max_frames: of the student.
    """
    samples = golden_signal(config, min(FRAMES, max_frames))
    log_mel = NumpyLogMel(config)((samples / np.float32(32768.0))[None].astype(np.float32))[:, :, :max_frames]
    frames = log_mel.shape[2]
    embedding = run_session(open_session(source), log_mel[:, None])[0]
    allowed = float(np.abs(embedding).max()) * 1e-3 if step is None else step
    return (
        comment(["A seeded signal, its log-mel and its embedding: what check.c wants of a device."])
        + "#ifndef OSSICLE_GOLDEN_H\n#define OSSICLE_GOLDEN_H\n\n#include <stdint.h>\n\n"
        + f"#define OSSICLE_GOLDEN_SAMPLES {len(samples)}\n#define OSSICLE_GOLDEN_FRAMES {frames}\n"
        + f"#define OSSICLE_GOLDEN_STEP {number(allowed)}\n\n"
        + array("int16", "ossicle_golden_samples", samples)
        + array("float32", "ossicle_golden_log_mel", log_mel[0].T)
        + array("float32", "ossicle_golden_embedding", embedding)
        + "\n#endif\n"
    )
