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
    return float(np.sqrt(_frame_energies(waveform)[0].sum() / len(waveform)))


def active_rms(waveform: Float32[np.ndarray, " samples"]) -> float:
    """Return the root mean square over the frames within 20 dB of the loudest; 0 for silence.

    Frames are 1,024 samples; a last partial frame counts by its own samples. Leaves pauses and padding out,
    so that the level of a short sound in a long window is the sound's.
    """
    energy, sizes = _frame_energies(waveform)
    power = energy / sizes
    active = power >= power.max() * 10.0 ** (-ACTIVE_RANGE_DB / 10.0)
    return float(np.sqrt(energy[active].sum() / sizes[active].sum()))


def _frame_energies(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    whole = len(waveform) // ACTIVE_FRAME_SAMPLES * ACTIVE_FRAME_SAMPLES
    squares = np.square(waveform)
    # Sums of one frame are exact enough in float32; those over frames are taken in float64.
    frames = squares[:whole].reshape(-1, ACTIVE_FRAME_SAMPLES).sum(axis=1).astype(np.float64)
    sizes = np.full(len(frames), ACTIVE_FRAME_SAMPLES)
    if whole == len(waveform):
        return frames, sizes
    rest = squares[whole:].sum(dtype=np.float64)
    return np.append(frames, rest), np.append(sizes, len(waveform) - whole)


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
    peak = max(float(waveform.max()), -float(waveform.min()))
    return waveform * np.float32(min(gain, peak_limit / peak))
