"""A miniature AudioSet: six made-up clips, the published lists' form, and packs of the same sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.audio.pack_writer import CLASSES, Clip

RATE_HZ = 32_000
IDS = ("--4gqARaEJE", "-0Gj8-vB1q4", "_7dVpCmzQ1k", "abcdefghijk", "Yabcdefghij", "ZZ_zz-00119")
MISSING = 3
HEADER = (
    "# Segments csv created Sun Mar  5 10:54:31 2017",
    "# num_ytids=6, num_segs=6, num_unique_labels=527, num_positive_labels=9",
    "# YTID, start_seconds, end_seconds, positive_labels",
)


def mid(index: int) -> str:
    return f"/m/0{index:04x}"


def write_class_labels(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = ["Speech", '"Male speech, man speaking"', *(f"Class {i}" for i in range(2, CLASSES))]
    lines = ["index,mid,display_name", *(f"{i},{mid(i)},{name}" for i, name in enumerate(names))]
    path = folder / "class_labels_indices.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_segments(path: Path, clips: list[Clip]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f'{name}, {30 + n}.000, {40 + n}.000, "{",".join(mid(c) for c in clip[2])}"'
        for n, (name, clip) in enumerate(zip(IDS, clips, strict=True))
    ]
    path.write_text("\n".join([*HEADER, *rows]) + "\n")
    return path


def clips(suffix: str, seconds: float = 3.0) -> list[Clip]:
    """Six clips of int16-exact float sound at 32 kHz; number ``MISSING`` is missing; the last is shorter."""
    made: list[Clip] = []
    for number, name in enumerate(IDS):
        generator = np.random.default_rng(number)
        samples = round(seconds * RATE_HZ) if number < 5 else round(0.6 * seconds * RATE_HZ)
        sound = generator.integers(-9_000, 9_000, samples).astype(np.float64)
        sound[-1] = 1_000  # no clip ends in zeros of its own
        waveform = None if number == MISSING else sound / 32_767
        made.append((f"Y{name}.{suffix}", waveform, [number, 1 + number * 87]))
    return made
