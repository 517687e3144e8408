"""Sample rate conversion: soxr, quality HQ (20 bit, linear phase)."""

from __future__ import annotations

import functools
import threading

import numpy as np
import soxr
from jaxtyping import Float32, Int64

LENGTH_STEP = 1 << 14  # samples; rows whose sound ends within the same step are resampled together
RINGING_SAMPLES = 2048  # at the lower of the two rates: many times what a filter rings on for
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
    rows = np.zeros((len(waveforms), samples), dtype=np.float32)
    if from_hz == to_hz:
        kept = waveforms[:, :samples]
        rows[:, : kept.shape[1]] = kept
        return rows
    ringing = RINGING_SAMPLES * max(1, -(-from_hz // to_hz))
    lengths = _sounding_lengths(waveforms, ringing)
    # Clips shorter than their window are common, and silence takes as long as sound.
    for length in np.unique(lengths[lengths > 0]):
        same = np.flatnonzero(lengths == length)
        # soxr takes rows as channels that lie apart, and designs one filter for all.
        resampled = soxr.resample(waveforms[same, :length].T, from_hz, to_hz, quality="HQ")[:samples]
        rows[same, : len(resampled)] = resampled.T
    return rows


def _sounding_lengths(
    waveforms: Float32[np.ndarray, "rows samples"], ringing: int
) -> Int64[np.ndarray, " rows"]:
    """Return a length for each row beyond which it, and what a filter makes of it, is zero; 0 for silence."""
    samples = waveforms.shape[1]
    sounding = np.logical_or.reduceat(waveforms != 0.0, np.arange(0, samples, LENGTH_STEP), axis=1)
    blocks = sounding.shape[1] - np.argmax(sounding[:, ::-1], axis=1)
    lengths = np.minimum(blocks * LENGTH_STEP + ringing, samples)
    return np.where(sounding.any(axis=1), lengths, 0).astype(np.int64)


@functools.lru_cache(maxsize=32)
def _stream(from_hz: int, to_hz: int, thread: int) -> soxr.ResampleStream:
    """Return the thread's own resampler of these rates: its state cannot be shared."""
    return soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")
