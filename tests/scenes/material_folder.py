"""A manifest of six invented speakers and three environments, made once for all tests of scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from pipeline import artifact
from pipeline.audio import decode
from pipeline.manifest import COLUMNS, content_digest

RATE = 44_100
SPEAKERS = 6
ENVIRONMENTS = {"rain": 4, "door": 4, "crowd": 3}
SMALL = (
    "scenes.tracks=14", "scenes.seconds=3", "scenes.test_share=0.4", "scenes.stems=true", "scenes.workers=1",
    "scenes.speakers=[0.7,0.2,0.1]", "scenes.seed=7",
)  # fmt: skip


def _word(generator: np.random.Generator, pitch_hz: float) -> np.ndarray:
    """Return a harmonic sound with a syllable's envelope between two silences."""
    samples = int(RATE * generator.uniform(0.3, 0.6))
    seconds = np.arange(samples) / RATE
    tone = sum(np.sin(2 * np.pi * pitch_hz * k * seconds) / k for k in range(1, 20))
    voiced = tone * np.sin(np.pi * np.arange(samples) / samples)
    silence = np.zeros(RATE // 20)
    return np.concatenate([silence, voiced * 0.2, silence])


def _environment(generator: np.random.Generator, name: str) -> np.ndarray:
    noise = generator.standard_normal(2 * RATE) * 0.05
    if name == "door":
        seconds = np.arange(2 * RATE) / RATE
        noise = noise * (np.exp(-(seconds % 0.5) / 0.03) + 1e-3)
    return noise


def write(root: Path, seed: int = 0) -> Path:
    """Write sound and its finished manifest below ``root``; return the manifest's folder."""
    generator = np.random.default_rng(seed)
    rows = []
    for speaker in range(SPEAKERS):
        rows += [
            (
                f"speech/{speaker}-{word}.wav",
                f"voice{speaker}",
                "",
                "speech",
                _word(generator, 90 + 40 * speaker),
            )
            for word in range(5)
        ]
    for name, recordings in ENVIRONMENTS.items():
        for recording in range(recordings):
            for take in range(2):
                path = f"background/{name}-{recording}-{take}.wav"
                rows.append((path, f"{name}{recording}", name, "ambience", _environment(generator, name)))
    table = []
    for path, group, label, kind, sound in rows:
        file = root / "audio" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, sound, RATE, subtype="PCM_16")
        found = decode.inspect(file)
        table.append({
            "clip_id": found.digest[:16], "root": "folder", "path": path, "source": "folder",
            "dataset": "words" if kind == "speech" else "places", "group": group, "split": "train", "fold": -1,
            "label": label, "kind": kind, "licence": "CC0-1.0", "credit": "nobody", "sample_rate_hz": RATE,
            "channels": 1, "frames": found.info.frames, "duration_seconds": found.info.duration_seconds,
        })  # fmt: skip
    return finish(root, pd.DataFrame(table))


def finish(root: Path, frame: pd.DataFrame) -> Path:
    """Write a manifest of these rows; return its folder."""
    frame = frame.astype(COLUMNS)
    folder = root / "manifest"
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / "clips.parquet", index=False)
    (folder / "roots.json").write_text(json.dumps({"folder": str(root / "audio")}), encoding="utf-8")
    artifact.finish(
        folder,
        kind="manifest",
        config={},
        inputs={},
        summary={"content": content_digest(frame), "clips": len(frame)},
    )
    return folder


def settings(clips: Path, artifacts: Path, *more: str) -> list[str]:
    """Return what --set would be given."""
    places = [f"paths.artifacts={artifacts}"]
    places += [f"scenes.{which}_manifest={clips}" for which in ("speech", "background")]
    return [*places, *SMALL, *more]
