"""Seeded synthetic sound: chirps, bursts, noise and harmonic tones for tests and fixture stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from jaxtyping import Float32

from pipeline.audio import decode, noise
from pipeline.audio.equaliser import log_uniform
from pipeline.manifest import COLUMNS


def chirp(generator: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """Return an exponential sine sweep between two drawn frequencies."""
    start_hz, end_hz = (log_uniform(generator, 100.0, 0.4 * rate_hz) for _ in range(2))
    share = np.arange(samples) / samples
    return np.sin(2 * np.pi * np.cumsum(start_hz * (end_hz / start_hz) ** share) / rate_hz)


def bursts(generator: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """Return decaying noise bursts at a steady drawn rate."""
    period = max(2, round(rate_hz / log_uniform(generator, 2.0, 16.0)))
    decay = np.exp(-(np.arange(samples) % period) / (log_uniform(generator, 0.005, 0.08) * rate_hz))
    return generator.uniform(-1.0, 1.0, samples) * decay


def hiss(generator: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """Return coloured noise of a drawn slope."""
    return noise.coloured(generator, samples, rate_hz, float(generator.uniform(0.0, 1.0)))


def tone(generator: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """Return a harmonic tone with tremolo."""
    base_hz = log_uniform(generator, 80.0, 1_000.0)
    seconds = np.arange(samples) / rate_hz
    orders = range(1, max(2, min(9, int(0.4 * rate_hz / base_hz))))
    total = sum(np.sin(2 * np.pi * base_hz * k * seconds) * generator.uniform(0.2, 1.0) / k for k in orders)
    return np.asarray(total * (1 + 0.5 * np.sin(2 * np.pi * log_uniform(generator, 2.0, 9.0) * seconds)))


KINDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "chirp": chirp,
    "bursts": bursts,
    "hiss": hiss,
    "tone": tone,
}


def clip(kind: str, seed: int, seconds: float, rate_hz: int) -> Float32[np.ndarray, " samples"]:
    """Return a synthetic clip of peak 0.5.

    Args:
        kind: ``chirp``, ``bursts``, ``hiss`` or ``tone``.
        seed: of every draw.
        seconds: length.
        rate_hz: sample rate.
    """
    generator = np.random.default_rng([seed, sorted(KINDS).index(kind)])
    wave = KINDS[kind](generator, max(1, round(seconds * rate_hz)), rate_hz)
    scaled: np.ndarray = wave * (0.5 / np.abs(wave).max())
    return scaled.astype(np.float32)


def write_clips(
    folder: Path,
    count: int,
    seed: int = 0,
    rates_hz: tuple[int, ...] = (44_100, 16_000),
    suffix: str = ".wav",
) -> pd.DataFrame:
    """Write ``count`` clips of 0.2 to 6 s into ``folder`` and return their manifest rows.

    Kinds and rates take turns; every tenth clip is in the validation split. ``root`` is ``"synthetic"``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, 7])
    rows = []
    for number in range(count):
        kind, rate = sorted(KINDS)[number % len(KINDS)], rates_hz[number % len(rates_hz)]
        path = folder / f"{kind}_{number:04d}{suffix}"
        soundfile.write(path, clip(kind, seed + number, log_uniform(generator, 0.2, 6.0), rate), rate)
        rows.append(manifest_row(path, folder, kind, "validation" if number % 10 == 9 else "train"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def manifest_row(path: Path, root: Path, label: str, split: str) -> dict[str, object]:
    """Return the manifest row of a synthetic clip."""
    found = decode.inspect(path)
    return {
        "clip_id": found.digest[:16],
        "root": "synthetic",
        "path": path.relative_to(root).as_posix(),
        "source": "synthesis",
        "dataset": "synthetic",
        "group": path.stem,
        "split": split,
        "fold": -1,
        "label": label,
        "kind": "effects",
        "licence": "CC0-1.0",
        "credit": "",
        "sample_rate_hz": found.info.sample_rate_hz,
        "channels": found.info.channels,
        "frames": found.info.frames,
        "duration_seconds": found.info.duration_seconds,
    }
