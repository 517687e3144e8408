"""Coloured noise, made in the frequency domain."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from pipeline.audio import equaliser, levels


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
    length = equaliser.fast_length(samples)
    bins = length // 2 + 1
    # The sum of so many terms is Gaussian whatever the terms are, and uniform ones cost a quarter.
    terms = generator.random(2 * bins, dtype=np.float32)
    terms -= np.float32(0.5)
    spectrum = terms.view(np.complex64)
    log_hz = equaliser.log_frequencies(length, rate_hz)
    if slope:
        log_gain = log_hz * np.float32(-slope)
        spectrum *= np.exp(log_gain - log_gain.max())
    for cut_hz, side in zip(band_hz or (), (-1.0, 1.0), strict=False):
        spectrum *= equaliser.pass_gain(log_hz, cut_hz, side)
    spectrum[0] = 0.0
    wave = equaliser.from_spectrum(spectrum, length)[:samples]
    wave *= np.float32(1.0 / max(levels.rms(wave), 1e-15))
    return wave
