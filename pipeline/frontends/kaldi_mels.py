"""Mel bands of spectra in one pass over memory, compiled by numba; see ``kaldi_compiled``.

A band holds few of the bins. Sixteen bands side by side are summed over the bins that any of them holds, eight
frames at once: a small matrix product whose sums stay in registers and whose operands in the nearest cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt64

from pipeline.frontends.simd_lanes import LANES, add_multiple, load, store, zeros

# Their sums fill half of AVX-512's registers and hide the time that one addition takes.
FRAMES = 8


class MelTiles(NamedTuple):
    """Mel weights by sixteen bands: the bins ``first`` to ``last`` that they hold, and those rows one by one."""

    first: UInt64[np.ndarray, " tiles"]
    last: UInt64[np.ndarray, " tiles"]
    weights: Float32[np.ndarray, " weights"]


def mel_tiles(weights: Float32[np.ndarray, "bins mels"]) -> MelTiles:
    """Return ``weights`` without the rows that are zero in all of sixteen bands."""
    bins, mels = weights.shape
    tiles = -(-mels // LANES)
    padded = np.zeros((bins, tiles * LANES), np.float32)
    padded[:, :mels] = weights
    first, last, rows = [], [], []
    for tile in np.split(padded, tiles, axis=1):
        held = np.flatnonzero(tile.any(axis=1))
        bounds = (held[0], held[-1] + 1) if len(held) else (0, 0)
        first.append(bounds[0])
        last.append(bounds[1])
        rows.append(tile[slice(*bounds)])
    return MelTiles(
        np.array(first, np.uint64), np.array(last, np.uint64), np.concatenate(rows).ravel(order="C")
    )


def write_mels(
    spectrum: Float32[np.ndarray, "frames pairs"],
    first: UInt64[np.ndarray, " tiles"],
    last: UInt64[np.ndarray, " tiles"],
    weights: Float32[np.ndarray, " weights"],
    floor: np.float32,
    is_power: bool,
    mels: Float32[np.ndarray, "frames mels"],
) -> None:
    """Write the mel bands of ``spectrum``, whose real and imaginary parts take turns in a row.

    Args:
        spectrum: its last axis is twice the number of bins.
        first: of ``mel_tiles``, as are ``last`` and ``weights``.
        last: one past.
        weights: rows of sixteen.
        floor: the smallest value written; what is no number is written as it is.
        is_power: bands of squared magnitudes; else of magnitudes.
        mels: what is written.
    """
    frames, bands = mels.shape
    bins, wide = spectrum.shape[1] // 2, len(first) * LANES
    values = np.zeros((FRAMES, bins), np.float32)
    sums = np.zeros(FRAMES * wide, np.float32)
    v0, v1, v2, v3, v4, v5, v6, v7 = (
        values[0], values[1], values[2], values[3], values[4], values[5], values[6], values[7],
    )  # fmt: skip
    for start in range(0, frames, FRAMES):
        # Behind the last frame stand older ones, whose sums nobody reads.
        count = min(FRAMES, frames - start)
        for number in range(count):
            pairs, row = spectrum[start + number], values[number]
            for k in range(bins):
                real, imaginary = pairs[2 * k], pairs[2 * k + 1]
                row[k] = real * real + imaginary * imaginary
            if not is_power:
                for k in range(bins):
                    row[k] = np.sqrt(row[k])
        at = 0
        for tile in range(len(first)):
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zeros()
            for k in range(first[tile], last[tile]):
                lanes = load(weights, at)
                at += LANES
                s0 = add_multiple(s0, v0[k], lanes)
                s1 = add_multiple(s1, v1[k], lanes)
                s2 = add_multiple(s2, v2[k], lanes)
                s3 = add_multiple(s3, v3[k], lanes)
                s4 = add_multiple(s4, v4[k], lanes)
                s5 = add_multiple(s5, v5[k], lanes)
                s6 = add_multiple(s6, v6[k], lanes)
                s7 = add_multiple(s7, v7[k], lanes)
            band = tile * LANES
            store(sums, band, s0)
            store(sums, band + wide, s1)
            store(sums, band + 2 * wide, s2)
            store(sums, band + 3 * wide, s3)
            store(sums, band + 4 * wide, s4)
            store(sums, band + 5 * wide, s5)
            store(sums, band + 6 * wide, s6)
            store(sums, band + 7 * wide, s7)
        for number in range(count):
            row, made = sums[number * wide : (number + 1) * wide], mels[start + number]
            for band in range(bands):
                made[band] = floor if row[band] < floor else row[band]
