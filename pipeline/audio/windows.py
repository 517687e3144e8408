"""Windows of a clip: one rule from seconds to frames, random non-overlapping offsets, padding.

Every place that turns a duration into a number of samples calls ``frame_count``; nothing else rounds.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32


def frame_count(seconds: float, rate_hz: int) -> int:
    """Return the samples in ``seconds`` at ``rate_hz``: rounded to nearest, halves up."""
    return math.floor(seconds * rate_hz + 0.5)


def window_starts(frames: int, window_frames: int, maximum: int, seed: tuple[int, ...]) -> list[int]:
    """Return first frames of windows that do not overlap, ascending.

    A clip no longer than a window gives one window at 0. A longer one is tiled from a random offset; where
    that gives more than ``maximum`` windows, that many are drawn.

    Args:
        frames: length of the clip.
        window_frames: length of a window at the clip's own rate.
        maximum: windows wanted at most.
        seed: of the offset and the draw; equal seeds give equal windows.
    """
    if frames <= window_frames:
        return [0]
    generator = np.random.default_rng(seed)
    count = frames // window_frames
    offset = int(generator.integers(0, frames - count * window_frames + 1))
    chosen = np.arange(count)
    if count > maximum:
        chosen = np.sort(generator.choice(count, maximum, replace=False))
    return [offset + int(index) * window_frames for index in chosen]


def spread_starts(frames: int, window_frames: int, maximum: int) -> list[int]:
    """Return first frames of at most ``maximum`` windows spread evenly over a clip, without any draw.

    The first starts at 0 and the last ends at the clip's end; they overlap only where the clip holds fewer
    whole windows than ``maximum`` asks for, which then counts the windows that fit (rounded up).
    """
    if frames <= window_frames:
        return [0]
    count = min(maximum, -(-frames // window_frames))
    if count == 1:
        return [(frames - window_frames) // 2]
    last = frames - window_frames
    return [round(index * last / (count - 1)) for index in range(count)]


def fit(waveform: Float32[np.ndarray, " samples"], samples: int) -> Float32[np.ndarray, " {samples}"]:
    """Return ``waveform`` cut, or padded with zeros at its end, to ``samples``."""
    if len(waveform) >= samples:
        return waveform[:samples]
    padded = np.zeros(samples, dtype=np.float32)
    padded[: len(waveform)] = waveform
    return padded
