"""Kaldi's frames and their power, each in one pass over memory, compiled by numba where it is installed (extra: speed).

The frames' operations and their order are those of ``KaldiFbank``'s own loop over whole arrays, so they are equal
bit by bit; only the passes between are saved.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32


class CompiledPasses(NamedTuple):
    """``write_frames`` and ``write_power``, compiled."""

    write_frames: Callable[[np.ndarray, int, np.ndarray, np.ndarray, np.float32, np.ndarray], None]
    write_power: Callable[[np.ndarray, np.ndarray], None]


@functools.cache
def compiled() -> CompiledPasses | None:
    """Return the passes, compiled; None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    import numba

    # No fastmath: a product and its sum must be rounded apart, as Kaldi's are. Unwrapped: a shape check around
    # the function cannot be compiled.
    compile_ = numba.njit(nogil=True, error_model="numpy")
    return CompiledPasses(*(compile_(inspect.unwrap(one)) for one in (write_frames, write_power)))


def write_frames(
    waveform: Float32[np.ndarray, " samples"],
    shift: int,
    means: Float32[np.ndarray, " frames"],
    window: Float32[np.ndarray, " frame"],
    preemphasis: np.float32,
    padded: Float32[np.ndarray, "frames n_fft"],
) -> None:
    """Write the centred, pre-emphasised and windowed frames of one clip into the first columns of ``padded``.

    Args:
        waveform: long enough for every frame.
        shift: samples between two frames.
        means: what is subtracted from each frame.
        window: as long as a frame.
        preemphasis: share of each sample's predecessor that is subtracted; the first sample is its own.
        padded: one row a frame; what lies behind the frame is left as it is.
    """
    for number in range(len(means)):
        frame = waveform[number * shift : number * shift + len(window)]
        out, mean = padded[number], means[number]
        for i in range(1, len(window)):
            out[i] = ((frame[i] - mean) - preemphasis * (frame[i - 1] - mean)) * window[i]
        out[0] = ((frame[0] - mean) - preemphasis * (frame[0] - mean)) * window[0]


def write_power(
    spectrum: Float32[np.ndarray, "frames bins 2"], power: Float32[np.ndarray, "frames bins"]
) -> None:
    """Write the squared magnitudes of ``spectrum``, whose real and imaginary parts stand side by side."""
    for frame in range(power.shape[0]):
        for k in range(power.shape[1]):
            real, imaginary = spectrum[frame, k, 0], spectrum[frame, k, 1]
            power[frame, k] = real * real + imaginary * imaginary
