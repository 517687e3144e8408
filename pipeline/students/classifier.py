"""A saved student's classifier: ``classifier.safetensors`` and the names of its classes, ``classes.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from pipeline.artifact import write_bytes, write_json
from pipeline.errors import WeightsError

WEIGHTS_FILE = "classifier.safetensors"
CLASSES_FILE = "classes.json"


def save_classifier(folder: Path, classifier: nn.Linear, classes: list[str]) -> None:
    """Write ``weight`` (classes, dim) and ``bias``, from embedding to logits, and the classes in that order."""
    state = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    write_bytes(folder / WEIGHTS_FILE, safetensors.torch.save(state))
    write_json(folder / CLASSES_FILE, classes)


def read_classes(folder: Path) -> list[str] | None:
    """Return the class names of a run in the order of its logits; None where it has no classifier.

    Raises:
        WeightsError: the file is no list of names.
    """
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    try:
        names: Any = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is damaged", got=str(error)) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{path} is no list of class names", got=str(names)[:80])
    return names
