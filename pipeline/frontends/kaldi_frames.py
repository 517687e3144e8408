"""Kaldi's frames in one pass over memory, compiled by numba where it is installed (extra: speed).

The operations and their order are those of ``KaldiFbank``'s own loop over whole arrays, so the frames are equal
bit by bit; only the passes between are saved.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

# What ``compiled`` returns: writes the frames of one clip.
FrameWriter = Callable[
    [np.ndarray, int, np.ndarray, np.ndarray, np.float32, np.ndarray],
    None,
]


@functools.cache
def compiled() -> FrameWriter | None:
    """Return the compiled ``write_frames``, or None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    import numba

    # No fastmath: a product and its sum must be rounded apart, as Kaldi's are. Unwrapped: a shape check around
    # the function cannot be compiled.
    writer: FrameWriter = numba.njit(nogil=True, error_model="numpy")(inspect.unwrap(write_frames))
    return writer


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
