"""Sample rate conversion: soxr, quality HQ (20 bit, linear phase)."""

from __future__ import annotations

import functools
import threading

import numpy as np
import soxr
from jaxtyping import Float32

STREAM_SAMPLES = 1 << 20  # longer signals are resampled in one call, which bounds soxr's buffers


def resample(
    waveform: Float32[np.ndarray, " samples"], from_hz: int, to_hz: int
) -> Float32[np.ndarray, " resampled"]:
    """Return ``waveform`` at ``to_hz``."""
    if from_hz == to_hz:
        return waveform
    if len(waveform) > STREAM_SAMPLES:
        resampled: np.ndarray = soxr.resample(waveform, from_hz, to_hz, quality="HQ")
        return resampled
    # A cleared stream gives the same bits, and designs its filter once: a third of a short window's time.
    stream = _stream(from_hz, to_hz, threading.get_ident())
    stream.clear()
    short: np.ndarray = stream.resample_chunk(np.ascontiguousarray(waveform, dtype=np.float32), last=True)
    return short


def resample_rows(
    waveforms: Float32[np.ndarray, "rows samples"], from_hz: int, to_hz: int, samples: int
) -> Float32[np.ndarray, "rows resampled"]:
    """Return each row at ``to_hz``, cut or padded with zeros to ``samples``: ``resample``'s bits, half its time."""
    if from_hz == to_hz and waveforms.shape[1] == samples:
        return waveforms
    # soxr takes rows as channels that lie apart, and designs one filter for all.
    resampled = waveforms.T if from_hz == to_hz else soxr.resample(waveforms.T, from_hz, to_hz, quality="HQ")
    rows = np.zeros((len(waveforms), samples), dtype=np.float32)
    kept = resampled[:samples]
    rows[:, : len(kept)] = kept.T
    return rows


@functools.lru_cache(maxsize=32)
def _stream(from_hz: int, to_hz: int, thread: int) -> soxr.ResampleStream:
    """Return the thread's own resampler of these rates: its state cannot be shared."""
    return soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")
