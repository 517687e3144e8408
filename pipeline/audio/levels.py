"""Levels: RMS over active frames, level setting, peak limit."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

ACTIVE_FRAME_SAMPLES = 1_024
ACTIVE_RANGE_DB = 20.0
PEAK_LIMIT = 0.98


def from_db(level_db: float) -> float:
    """Return the amplitude factor of ``level_db``."""
    return float(10.0 ** (level_db / 20.0))


def rms(waveform: Float32[np.ndarray, " samples"]) -> float:
    """Return the root mean square over all samples."""
    return float(np.sqrt(np.mean(np.square(waveform), dtype=np.float64)))


def active_rms(waveform: Float32[np.ndarray, " samples"]) -> float:
    """Return the root mean square over the frames within 20 dB of the loudest; 0 for silence.

    Frames are 1,024 samples; a last partial frame counts by its own samples. Leaves pauses and padding out,
    so that the level of a short sound in a long window is the sound's.
    """
    starts = np.arange(0, len(waveform), ACTIVE_FRAME_SAMPLES)
    energy = np.add.reduceat(np.square(waveform), starts, dtype=np.float64)
    sizes = np.minimum(ACTIVE_FRAME_SAMPLES, len(waveform) - starts)
    power = energy / sizes
    active = power >= power.max() * 10.0 ** (-ACTIVE_RANGE_DB / 10.0)
    return float(np.sqrt(energy[active].sum() / sizes[active].sum()))


def set_level(
    waveform: Float32[np.ndarray, " samples"], level_dbfs: float, peak_limit: float = PEAK_LIMIT
) -> Float32[np.ndarray, " samples"]:
    """Return ``waveform`` scaled to an RMS of ``level_dbfs``, or lower where its peak would pass the limit.

    0 dBFS is an RMS of 1. Silence stays silence.
    """
    level = rms(waveform)
    if level == 0.0:
        return waveform
    gain = from_db(level_dbfs) / level
    peak = float(np.abs(waveform).max())
    return waveform * np.float32(min(gain, peak_limit / peak))
