"""Three classes of synthetic sound as files: tones, noise and clicks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

CLASSES = ("clicks", "noise", "tone")


def waveform(label: str, seed: int, seconds: float, rate_hz: int) -> np.ndarray:
    """Return float32 samples of one class."""
    generator = np.random.default_rng([seed, CLASSES.index(label)])
    samples = int(seconds * rate_hz)
    time = np.arange(samples) / rate_hz
    if label == "tone":
        wave = np.sin(2 * np.pi * generator.uniform(200, 2_000) * time)
    elif label == "noise":
        wave = generator.standard_normal(samples) * 0.3
    else:
        wave = (generator.random(samples) < 20 / rate_hz) * 1.0
    return (0.5 * wave + 0.001 * generator.standard_normal(samples)).astype(np.float32)


def write_folder(folder: Path, per_class: int = 6, seconds: float = 0.7) -> list[tuple[str, str]]:
    """Write ``<label>/<number>.wav`` and return (path, label) pairs, relative to ``folder``."""
    written = []
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            rate_hz = (44_100, 22_050, 48_000)[number % 3]
            path = f"{label}/{number}.wav"
            soundfile.write(
                folder / path, waveform(label, number, seconds * (1 + number / 4), rate_hz), rate_hz
            )
            written.append((path, label))
    return written
