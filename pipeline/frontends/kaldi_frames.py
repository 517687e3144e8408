"""Kaldi's frames in one pass over memory, compiled by numba; see ``kaldi_compiled``.

The operations and their order are those of ``KaldiFbank``'s own loop over whole arrays, so frames are equal bit by
bit; only the passes between are saved.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from pipeline.frontends.simd_lanes import LANES, add_multiple, load, store, zeros

# Torch's AVX2 vectors, of which it sums four side by side.
_VECTOR = 8
_ROW = 4 * _VECTOR


def write_frames(
    waveforms: Float32[np.ndarray, "clips samples"],
    start: int,
    shift: int,
    frames: int,
    means: Float32[np.ndarray, " means"],
    window: Float32[np.ndarray, " frame"],
    preemphasis: np.float32,
    padded: Float32[np.ndarray, "rows n_fft"],
) -> None:
    """Write the centred, pre-emphasised and windowed frames of clips into the first columns of ``padded``.

    Args:
        waveforms: long enough for every frame.
        start: the first frame's number.
        shift: samples between two frames.
        frames: of each clip.
        means: what is subtracted from each frame, clip after clip; none: its mean, summed in the order in which
            torch 2 sums at most 511 numbers with AVX2.
        window: as long as a frame.
        preemphasis: share of each sample's predecessor that is subtracted; the first sample is its own.
        padded: one row a frame, clip after clip; what lies behind the frame is left as it is.
    """
    size = len(window)
    one, sums = np.float32(1.0), np.zeros(_ROW, np.float32)
    for row in range(waveforms.shape[0] * frames):
        clip, number = divmod(row, frames)
        begin = (start + number) * shift
        frame = waveforms[clip, begin : begin + size]
        if len(means) > 0:
            mean = means[row]
        else:
            left, right = zeros(), zeros()
            for i in range(0, size - _ROW + 1, _ROW):
                left = add_multiple(left, one, load(frame, i))
                right = add_multiple(right, one, load(frame, i + LANES))
            store(sums, 0, left)
            store(sums, LANES, right)
            for i in range(size // _ROW * _ROW, size // _VECTOR * _VECTOR):
                sums[i % _VECTOR] += frame[i]
            for i in range(_VECTOR, _ROW):
                sums[i % _VECTOR] += sums[i]
            total = np.float32(0.0)
            for i in range(size // _VECTOR * _VECTOR, size):
                total += frame[i]
            for i in range(_VECTOR):
                total += sums[i]
            mean = total / np.float32(size)
        out = padded[row]
        for i in range(1, size):
            out[i] = ((frame[i] - mean) - preemphasis * (frame[i - 1] - mean)) * window[i]
        out[0] = ((frame[0] - mean) - preemphasis * (frame[0] - mean)) * window[0]
