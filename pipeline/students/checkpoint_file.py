"""Which file ``student.weights`` names, and its digest. Imports no torch, for stages name runs by it."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifact import file_digest
from pipeline.errors import WeightsError

WEIGHTS_FILE = "student.safetensors"
DESCRIPTION_FILE = "student.json"


def checkpoint_file(weights: Path) -> Path:
    """Return the file that ``student.weights`` names: itself, or a run folder's ``student.safetensors``.

    Raises:
        WeightsError: there is no such file.
    """
    path = weights / WEIGHTS_FILE if weights.is_dir() else weights
    if not path.is_file():
        raise WeightsError(
            "the weights that the student starts from are not there",
            expected=f"a checkpoint file, or a run's folder that holds {WEIGHTS_FILE}",
            got=f"no file {path}",
            run="give student.weights a file, or take the key out to start at random",
        )
    return path


def content_digest(weights: Path) -> str:
    """Return the SHA-256 of the file that ``student.weights`` names.

    Raises:
        WeightsError: there is no such file.
    """
    return file_digest(checkpoint_file(weights))
