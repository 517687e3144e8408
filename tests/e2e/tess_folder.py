"""A folder of the form that TESS has: one word spoken in seven emotions by two speakers, as tones that a band tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000
SECONDS = 0.4
WORDS = ("back", "bar", "base", "bath", "bean", "beg", "bite", "boat", "bone", "book")
EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
SPEAKERS = {"OAF": 1.0, "YAF": 1.25}


def write_folder(root: Path) -> int:
    """Write the clips in folders of a speaker and an emotion; return how many."""
    rng = np.random.default_rng(8)
    time = np.arange(round(RATE_HZ * SECONDS)) / RATE_HZ
    written = 0
    for speaker, pitch in SPEAKERS.items():
        for number, emotion in enumerate(EMOTIONS):
            folder = root / f"{speaker}_{emotion}"
            folder.mkdir(parents=True)
            for word in WORDS:
                hz = pitch * 180.0 * 1.7**number * rng.uniform(0.97, 1.03)
                envelope = np.exp(-3.0 * time) * (1 + 0.5 * np.sin(2 * np.pi * (3 + number) * time))
                sound = 0.3 * envelope * np.sin(2 * np.pi * hz * time) + 0.01 * rng.standard_normal(len(time))
                path = folder / f"{speaker}_{word}_{emotion}.wav"
                soundfile.write(path, sound.astype(np.float32), RATE_HZ, subtype="PCM_16")
                written += 1
    return written
