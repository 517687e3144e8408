"""Kaldi's frames and mel bands, each in one pass over memory, compiled by numba where installed (extra: speed).

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
    """``write_frames`` and ``kaldi_mels.write_mels``, compiled."""

    write_frames: Callable[[np.ndarray, int, int, np.ndarray, np.ndarray, np.float32, np.ndarray], None]
    write_mels: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.float32, bool, np.ndarray], None]


@functools.cache
def compiled() -> CompiledPasses | None:
    """Return the passes, compiled at their first call; None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    import numba

    from pipeline.frontends.kaldi_mels import write_mels

    # Unwrapped: a shape check around the function cannot be compiled.
    frames, mels = inspect.unwrap(write_frames), inspect.unwrap(write_mels)
    # Of the frames a product and its sum must be rounded apart, as Kaldi's are.
    exact = numba.njit(nogil=True, error_model="numpy")
    contracted = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
    return CompiledPasses(exact(frames), contracted(mels))


def write_frames(
    waveforms: Float32[np.ndarray, "clips samples"],
    start: int,
    shift: int,
    means: Float32[np.ndarray, "clips frames"],
    window: Float32[np.ndarray, " frame"],
    preemphasis: np.float32,
    padded: Float32[np.ndarray, "rows n_fft"],
) -> None:
    """Write the centred, pre-emphasised and windowed frames of clips into the first columns of ``padded``.

    Args:
        waveforms: long enough for every frame.
        start: the first frame's number.
        shift: samples between two frames.
        means: what is subtracted from each frame, from number ``start`` on.
        window: as long as a frame.
        preemphasis: share of each sample's predecessor that is subtracted; the first sample is its own.
        padded: one row a frame, clip after clip; what lies behind the frame is left as it is.
    """
    clips, frames = means.shape
    for clip in range(clips):
        for number in range(frames):
            begin = (start + number) * shift
            frame = waveforms[clip, begin : begin + len(window)]
            out, mean = padded[clip * frames + number], means[clip, number]
            for i in range(1, len(window)):
                out[i] = ((frame[i] - mean) - preemphasis * (frame[i - 1] - mean)) * window[i]
            out[0] = ((frame[0] - mean) - preemphasis * (frame[0] - mean)) * window[0]
