"""Analysis windows and the matrices of a windowed DFT, whole or in two stages, in float64. numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.frontends.constants import LogMelConstants


def padded_window(config: LogMelConstants) -> np.ndarray:
    """Return the (n_fft,) float64 Hann window, zeros on both sides where ``window_length`` is shorter."""
    length = config.window_length
    period = length if config.window == "hann_periodic" else max(1, length - 1)
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / period)
    left = (config.n_fft - length) // 2
    return np.pad(window, (left, config.n_fft - length - left))


def windowed_dft(window: np.ndarray) -> np.ndarray:
    """Return the window times the DFT's cosines, then times its negative sines.

    Returns:
        (2 * (n_fft // 2 + 1), n_fft) float64.
    """
    n_fft = len(window)
    angle = angles(np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)), n_fft)
    return np.asarray(np.concatenate([np.cos(angle), -np.sin(angle)]) * window)


def angles(products: np.ndarray, period: int) -> np.ndarray:
    """Return ``2 pi products / period``, each kept below 2 pi, so that cos and sin are exact to the last bit."""
    return np.asarray(2.0 * np.pi * (products % period) / period)


@dataclass(frozen=True)
class SplitDft:
    """A windowed real DFT of ``n_fft = taps * phases`` points in two stages.

    Cooley and Tukey, "An Algorithm for the Machine Calculation of Complex Fourier Series", 1965. With
    ``n = phases * tap + phase`` and ``k = residue + taps * turn``, each phase is first transformed over its taps
    (window and twiddles are in these weights), then each residue over the phases. A real signal needs
    the residues 0 to taps / 2 alone: the other bins are their conjugates.

    Attributes:
        taps, phases: see above.
        first: (phases, 2 * residues, taps): of each phase, real then imaginary parts.
        second: (2 * phases, 2 * phases): from (phase, part) to (part, turn).
        bins: (phases * residues,) which of the n_fft / 2 + 1 bins stands at each (turn, residue).
    """

    taps: int
    phases: int
    first: np.ndarray
    second: np.ndarray
    bins: np.ndarray

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one frame."""
        return int(self.first.size + self.second.size * (self.taps // 2 + 1))


def split_macs(taps: int, phases: int) -> int:
    """Return the multiply-accumulates of a frame in two stages of these sizes."""
    residues = taps // 2 + 1
    return phases * 2 * residues * taps + 4 * phases * phases * residues


def split_dft(window: np.ndarray, taps: int) -> SplitDft:
    """Return the two stages of a windowed DFT; ``taps`` divides the window's length."""
    n_fft = len(window)
    phases, residues = n_fft // taps, taps // 2 + 1
    sample = phases * np.arange(taps)[None, :] + np.arange(phases)[:, None]
    angle = angles(sample[:, None, :] * np.arange(residues)[None, :, None], n_fft)
    first = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1) * window[sample][:, None, :]
    turn = angles(np.outer(np.arange(phases), np.arange(phases)), phases)
    real = np.stack([np.cos(turn), np.sin(turn)], axis=2).reshape(phases, 2 * phases)
    imaginary = np.stack([-np.sin(turn), np.cos(turn)], axis=2).reshape(phases, 2 * phases)
    bins = taps * np.arange(phases)[:, None] + np.arange(residues)[None, :]
    folded = np.minimum(bins, n_fft - bins).reshape(-1)
    return SplitDft(taps, phases, first, np.concatenate([real, imaginary]), folded)


def best_taps(n_fft: int, hop_length: int) -> int:
    """Return the taps that cost least; ``n_fft`` where two stages save nothing.

    Where the phases divide ``hop_length`` too, a convolution over blocks of that many samples does framing, window and
    first stage; elsewhere frames are copied out first, which is counted as four multiply-accumulates a sample.
    """

    def cost(taps: int) -> int:
        if taps == n_fft:
            return n_fft * (n_fft + 2)
        phases = n_fft // taps
        return split_macs(taps, phases) + (4 * n_fft if hop_length % phases else 0)

    return min((taps for taps in range(2, n_fft + 1) if n_fft % taps == 0), key=cost)
