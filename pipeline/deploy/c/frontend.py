"""A log-mel frontend as one C99 header: its constants and tables; the code stands in ``ossicle_log_mel.h``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.deploy.c.writer import array, comment, number
from pipeline.errors import ConfigError
from pipeline.frontends.constants import LogMelConstants
from pipeline.frontends.mel_bank import mel_bank
from pipeline.frontends.windowed_dft import angles, padded_window


@dataclass(frozen=True)
class WrittenFrontend:
    """A header and what it costs.

    Attributes:
        text: the C source.
        table_bytes: of window, twiddles and mel bands, in flash.
        scratch_bytes: of the FFT; ``stream_bytes``: of a stream's state. Both RAM.
        flops: floating-point operations of a frame: window, FFT, power, bands; logarithms are not counted.
    """

    text: str
    table_bytes: int
    scratch_bytes: int
    stream_bytes: int
    flops: int


def write_frontend(config: LogMelConstants, *, about: Iterable[str] = ()) -> WrittenFrontend:
    """Return the header of ``config``.

    Raises:
        ConfigError: ``n_fft`` is no multiple of 4.
    """
    n_fft = config.n_fft
    if n_fft % 4:
        raise ConfigError(
            "the C frontend has no FFT of this length", expected="embed.frontend.n_fft a multiple of 4", got=n_fft
        )  # fmt: skip
    steps = radices(n_fft // 2)
    tables = [
        array("float32", "ossicle_analysis_window", padded_window(config)),
        array("float32", "ossicle_cosines", np.cos(angles(np.arange(n_fft + n_fft // 4), n_fft))),
    ]
    sizes = n_fft + n_fft + n_fft // 4
    products = 0
    if config.bands == "mel":
        first, bins, weights = _sparse(mel_bank(config))
        tables += [
            array("int32", "ossicle_band_first", first),
            array("int32", "ossicle_band_bins", bins),
            array("float32", "ossicle_band_weights", weights),
        ]
        sizes += first.size + bins.size + weights.size
        products = 2 * weights.size
    reflects = config.center and config.pad_mode == "reflect"
    settings = {
        "MELS": config.mels, "SAMPLE_RATE_HZ": config.sample_rate_hz, "N_FFT": n_fft, "HOP": config.hop_length,
        "CENTER": int(config.center), "REFLECT": int(reflects), "STANDARDISE": int(config.standardise),
        "LINEAR": int(config.bands == "linear"), "ROOT": int(config.power != 2.0), "POWER": number(config.power),
        "LOG_IS_LN": int(config.log == "ln"), "LOG_TIMES": "10.0f" if config.log == "db" else "1.0f",
        "LOG_OFFSET": number(config.log_offset), "LOG_FLOOR": number(config.log_floor),
    }  # fmt: skip
    # The student's header names the number of mels too.
    defines = "".join(
        f"#define OSSICLE_{name} {value}\n" for name, value in settings.items() if name != "MELS"
    )
    mels = f"#ifndef OSSICLE_MELS\n#define OSSICLE_MELS {config.mels}\n#endif\n"
    text = (
        comment(about)
        + "#ifndef OSSICLE_FRONTEND_H\n#define OSSICLE_FRONTEND_H\n\n#include <stdint.h>\n\n"
        + mels + defines + "\n" + "".join(tables)
        + f"static const int ossicle_radices[{len(steps)}] = {{{', '.join(map(str, steps))}}};\n"
        + '\n#include "ossicle_log_mel.h"\n\n#endif\n'
    )  # fmt: skip
    stream = 0 if config.standardise else 4 * (n_fft + (n_fft // 2 + 1 if reflects else 0) + 4)
    return WrittenFrontend(text, 4 * sizes, 8 * n_fft, stream, _fft_flops(n_fft, steps) + n_fft + products)


def radices(length: int) -> list[int]:
    """Return the factors of an FFT's stages: fours, a two, then odd primes, in that order."""
    found = []
    for radix in (4, 2, *range(3, length + 1, 2)):
        while length % radix == 0 and length > 1:
            found.append(radix)
            length //= radix
    return found or [1]


def _sparse(bank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (first bin, number of bins, weights one after another) of every band."""
    first, bins, weights = [], [], []
    for row in bank:
        inside = np.flatnonzero(row)
        start, end = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)
        first.append(start)
        bins.append(end - start)
        weights.append(row[start:end])
    return np.array(first), np.array(bins), np.concatenate(weights)


def _fft_flops(n_fft: int, steps: list[int]) -> int:
    """Return additions and multiplications of the complex FFT's stages, and of the step from it to real powers."""
    half = n_fft // 2
    turned = 6
    each = {4: 16 + 3 * turned, 2: 4 + turned}
    stages = sum(half // r * each.get(r, r * (r * (turned + 2) + turned)) for r in steps)
    return stages + (half + 1) * (8 + turned + 2 + 3)
