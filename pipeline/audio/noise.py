"""Coloured noise, made in the frequency domain."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32

from pipeline.audio import equaliser


def coloured(
    generator: np.random.Generator,
    samples: int,
    rate_hz: int,
    slope: float,
    band_hz: tuple[float, float] | None = None,
) -> Float32[np.ndarray, " samples"]:
    """Return Gaussian noise whose amplitude spectrum falls as f to the power of ``-slope``.

    Args:
        generator: of the noise.
        samples: length.
        rate_hz: sample rate.
        slope: 0 white, 0.5 pink, 1 brown.
        band_hz: pass band, with slopes of 24 dB an octave outside; None = everything.

    Returns:
        float32 (samples,) of unit RMS.
    """
    bins = samples // 2 + 1
    spectrum = generator.standard_normal(2 * bins, dtype=np.float32).view(np.complex64)
    log_hz = equaliser.log_frequencies(samples, rate_hz)
    if slope or band_hz:
        log_gain = log_hz * np.float32(-slope)
        for cut_hz, side in zip(band_hz or (), (-1.0, 1.0), strict=False):
            ratio = np.exp((log_hz - np.float32(math.log(cut_hz))) * np.float32(8.0 * side))
            log_gain -= np.float32(0.5) * np.log1p(ratio)
        log_gain -= log_gain.max()
        spectrum *= np.exp(log_gain)
    spectrum[0] = 0.0
    # By Parseval; the last bin's double count is one part in the number of bins.
    power = float(np.square(spectrum.view(np.float32)).sum(dtype=np.float64)) * 2.0 / samples**2
    return equaliser.from_spectrum(spectrum * np.float32(1.0 / math.sqrt(max(power, 1e-30))), samples)
