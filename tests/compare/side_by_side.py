"""One call of the stage, and what all its tests share."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipeline.config import LogMelConfig, Recipe
from stages import compare
from stages.compare_models import declared

FRONTEND = LogMelConfig(mels=16)
WINDOW_SECONDS = 0.5


def call(
    recipe: Recipe, references: Sequence[str], options: Sequence[str] = (), **more: Any
) -> tuple[Path, dict[str, Any], str]:
    """Return the folder, the JSON and what was printed; foreign files hear 16 kHz unless ``options`` say otherwise."""
    text = io.StringIO()
    given = declared(
        [*more.pop("everywhere", ["sample_rate_hz=16000"]), *options], more.pop("contract", None)
    )
    folder = compare.run(recipe, references, console=Console(file=text, width=200), declared=given, **more)
    return folder, json.loads((folder / compare.RESULT).read_text()), text.getvalue()


def literal_overlap(left: np.ndarray, right: np.ndarray) -> float:
    """Return what share of the ten nearest by cosine the two spaces have in common, row by row."""
    shared = []
    for row in range(len(left)):
        nearest = []
        for space in (left, right):
            cosines = space @ space[row] / np.linalg.norm(space, axis=1) / np.linalg.norm(space[row])
            cosines[row] = -2
            nearest.append(set(np.argsort(-cosines)[:10]))
        shared.append(len(nearest[0] & nearest[1]) / 10)
    return float(np.mean(shared))
