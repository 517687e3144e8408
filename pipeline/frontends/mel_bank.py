"""Mel scales and triangular filter banks, in float64. numpy alone."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from pipeline.frontends.constants import LogMelConstants

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]

# Slaney's Auditory Toolbox (Interval TR 1998-010): linear to 1 kHz, then 27 steps a factor of 6.4.
_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_BREAK_MEL = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: npt.ArrayLike, scale: str) -> Array:
    """Return mels of frequencies in Hz; ``htk`` = 2595 log10(1 + f/700), ``slaney`` = Auditory Toolbox."""
    frequency = np.asarray(hz, dtype=np.float64)
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + frequency / 700.0))
    above = _SLANEY_BREAK_MEL + np.log(np.maximum(frequency, 1e-9) / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
    return np.where(frequency < _SLANEY_BREAK_HZ, frequency / _SLANEY_HZ_PER_MEL, above)


def mel_to_hz(mel: npt.ArrayLike, scale: str) -> Array:
    """Return frequencies in Hz of mels; the inverse of ``hz_to_mel``."""
    value = np.asarray(mel, dtype=np.float64)
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (value / 2595.0) - 1.0))
    above = _SLANEY_BREAK_HZ * np.exp(_SLANEY_LOG_STEP * (value - _SLANEY_BREAK_MEL))
    return np.where(value < _SLANEY_BREAK_MEL, value * _SLANEY_HZ_PER_MEL, above)


def triangles(points: Array, edges: Array) -> Array:
    """Return triangles of peak 1 over ``edges[i], edges[i+1], edges[i+2]``, sampled at ``points``.

    Args:
        points: (bins,) where the triangles are sampled, in the unit of ``edges``.
        edges: (bands + 2,) strictly increasing.

    Returns:
        (bands, bins), values in [0, 1].
    """
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (points - left) / (centre - left)
    falling = (right - points) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


def mel_bank(config: LogMelConstants) -> Array:
    """Return the (mels, n_fft // 2 + 1) filter bank of ``config``: triangles linear in Hz."""
    bins_hz: Array = np.arange(config.n_fft // 2 + 1, dtype=np.float64) * (
        config.sample_rate_hz / config.n_fft
    )
    low, high = hz_to_mel([config.min_hz, config.max_hz], config.mel_scale)
    edges_mel: Array = np.linspace(low, high, config.mels + 2, dtype=np.float64)
    edges_hz = mel_to_hz(edges_mel, config.mel_scale)
    bank = triangles(bins_hz, edges_hz)
    if config.mel_norm == "slaney":
        bank *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    empty = int((bank.max(axis=1) == 0).sum())
    if empty:
        logger.warning(
            "%d of %d mel bands hold no FFT bin: raise n_fft or min_hz, or lower mels", empty, config.mels
        )
    return bank
