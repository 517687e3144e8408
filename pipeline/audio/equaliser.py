"""Random equalisers: a curve that is piecewise linear in log frequency, with an occasional low- or high-pass.

Applied as a zero-phase gain to the spectrum of the whole window, padded with zeros to a length whose transform
is fast; what a curve spreads beyond the window's end is cut off or wraps to its start, and is little, for the
curves are smooth.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from jaxtyping import Complex64, Float32

NODES = 8
LOWEST_NODE_HZ, HIGHEST_NODE_HZ = 40.0, 20_000.0
LOW_PASS_HZ = (1_600.0, 16_000.0)
HIGH_PASS_HZ = (63.0, 630.0)
PASS_PROBABILITY = 0.3
FAST_FACTORS = (1, 3, 5, 9, 15, 25, 45, 75)
PASS_ORDER = 4  # Butterworth: 24 dB an octave


@dataclass(frozen=True)
class Equaliser:
    """Gains at 8 nodes from 40 Hz to 20 kHz, evenly spaced in log frequency, and optional cut-offs."""

    node_gains_db: tuple[float, ...]
    low_pass_hz: float | None = None
    high_pass_hz: float | None = None


def draw(generator: np.random.Generator, gain_db: float) -> Equaliser:
    """Return an equaliser with node gains within plus or minus ``gain_db``.

    30 % have a low-pass (1.6 to 16 kHz), 30 % a high-pass (63 to 630 Hz); cut-offs are uniform in log.
    """
    gains = generator.uniform(-gain_db, gain_db, NODES)
    low_pass = log_uniform(generator, *LOW_PASS_HZ) if generator.random() < PASS_PROBABILITY else None
    high_pass = log_uniform(generator, *HIGH_PASS_HZ) if generator.random() < PASS_PROBABILITY else None
    return Equaliser(tuple(float(g) for g in gains), low_pass, high_pass)


def log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """Return a value between ``low`` and ``high``, uniform in its logarithm."""
    return math.exp(generator.uniform(math.log(low), math.log(high)))


def response(equaliser: Equaliser, samples: int, rate_hz: int) -> Float32[np.ndarray, " bins"]:
    """Return the gain (amplitude factor) of each bin of a real FFT of ``samples`` samples."""
    log_hz, index, share = _node_grid(samples, rate_hz)
    nodes = np.asarray(equaliser.node_gains_db, dtype=np.float32) * np.float32(math.log(10.0) / 20.0)
    steps = np.append(np.diff(nodes), np.float32(0.0))
    gain: np.ndarray = steps[index]
    gain *= share
    gain += nodes[index]
    np.exp(gain, out=gain)
    for cut_hz, side in ((equaliser.low_pass_hz, 1.0), (equaliser.high_pass_hz, -1.0)):
        if cut_hz is not None:
            gain *= pass_gain(log_hz, cut_hz, side)
    return gain


def pass_gain(
    log_hz: Float32[np.ndarray, " bins"], cut_hz: float, side: float
) -> Float32[np.ndarray, " bins"]:
    """Return the Butterworth gain of each bin, 24 dB an octave: a low-pass for ``side`` 1, a high-pass for -1."""
    ratio: np.ndarray = log_hz - np.float32(math.log(cut_hz))
    ratio *= np.float32(2 * PASS_ORDER * side)
    np.exp(ratio, out=ratio)
    ratio += np.float32(1.0)
    np.sqrt(ratio, out=ratio)
    np.reciprocal(ratio, out=ratio)
    return ratio


def apply(
    equaliser: Equaliser, waveform: Float32[np.ndarray, " samples"], rate_hz: int
) -> Float32[np.ndarray, " samples"]:
    """Return ``waveform`` with the equaliser's gains on its spectrum."""
    length = fast_length(len(waveform))
    spectrum = scipy.fft.rfft(waveform, length)
    spectrum *= response(equaliser, length, rate_hz)
    return from_spectrum(spectrum, length)[: len(waveform)]


def from_spectrum(spectrum: Complex64[np.ndarray, " bins"], samples: int) -> Float32[np.ndarray, " samples"]:
    """Return the real signal of a one-sided spectrum, which is overwritten."""
    waveform: np.ndarray = scipy.fft.irfft(spectrum, samples, overwrite_x=True)
    return waveform


def fast_length(samples: int) -> int:
    """Return the least length from ``samples`` on that is a power of two times a small product of 3 and 5.

    The teacher's window, 101,376 = 2**10 * 99 samples, takes twice as long to transform as 102,400 = 2**12 * 25.
    """
    return min(factor << max(0, math.ceil(math.log2(samples / factor))) for factor in FAST_FACTORS)


def log_frequencies(samples: int, rate_hz: int) -> Float32[np.ndarray, " bins"]:
    """Return ln(Hz) of each bin of a real FFT; bin 0 takes bin 1's, for its logarithm is none."""
    return _node_grid(samples, rate_hz)[0]


@functools.lru_cache(maxsize=4)
def _node_grid(samples: int, rate_hz: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hz = np.arange(samples // 2 + 1, dtype=np.float64) * (rate_hz / samples)
    hz[0] = hz[1] if len(hz) > 1 else 1.0
    log_hz = np.log(hz)
    position = (log_hz - math.log(LOWEST_NODE_HZ)) / math.log(HIGHEST_NODE_HZ / LOWEST_NODE_HZ) * (NODES - 1)
    position = position.clip(0, NODES - 1)
    index = np.minimum(position.astype(np.intp), NODES - 2)
    grids = log_hz.astype(np.float32), index, (position - index).astype(np.float32)
    for grid in grids:
        grid.setflags(write=False)
    return grids
