"""Thirty-six half-second sounds of three classes in three folds, and a recipe that learns them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console

from pipeline import manifest as manifests
from pipeline.config import Recipe
from pipeline.manifest import Manifest
from stages import manifest as manifest_stage

RATE_HZ = 16_000
CLASSES = ("hiss", "hum", "whistle")


def write_sounds(folder: Path) -> Path:
    """Write the sounds and their table; return the table."""
    rng = np.random.default_rng(5)
    time = np.arange(RATE_HZ // 2) / RATE_HZ
    rows = []
    for fold in (1, 2, 3):
        for take in range(4):
            for name in CLASSES:
                noise = rng.standard_normal(len(time))
                hz = {"hum": 120.0, "whistle": 2_500.0}.get(name, 0.0) * rng.uniform(0.9, 1.1)
                sound = 0.2 * noise if name == "hiss" else 0.4 * np.sin(2 * np.pi * hz * time) + 0.01 * noise
                path = folder / f"{name}_{fold}_{take}.wav"
                soundfile.write(path, sound.astype(np.float32), RATE_HZ, subtype="FLOAT")
                rows.append([path.name, name, fold, "a" if take % 2 else "b", f"{name}{fold}{take}"])
    table = folder / "sounds.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "fold", "device", "group"], *rows])
    return table


def recipe(folder: Path, table: Path, **sections: Any) -> Recipe:
    """Return a recipe on ``table`` with a student of few steps; ``sections`` replace its own."""
    finetune = {
        "held_out_folds": [1], "steps": 12, "batch_size": 8, "warmup_steps": 2, "validate_every": 4,
        "learning_rate": 1e-2, **sections.pop("finetune", {}),
    }  # fmt: skip
    return Recipe.model_validate(
        {
            "name": "tones",
            "paths": {"artifacts": str(folder)},
            "manifest": {"inputs": [{"kind": "csv", "path": str(table)}], "validation_share": 0.25},
            "student": {"name": "cp_mobile_6k"},
            "embed": {
                "frontend": {"mels": 32, "n_fft": 512, "hop_length": 320},
                "window_seconds": 0.5,
                "shard_rows": 16,
                "chunk_rows": 8,
                "workers": 1,
            },
            "finetune": finetune,
            **sections,
        }
    )


def made_manifest(made: Recipe) -> Manifest:
    """Return the finished manifest of a recipe."""
    return manifests.read(manifest_stage.run(made, console=Console(quiet=True)))
