"""A saved student's classifier: ``classifier.safetensors`` and the names of its classes, ``classes.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.artifact import write_bytes, write_json
from pipeline.errors import MissingArtifactError, WeightsError

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


def read_classifier(folder: Path, embedding_dim: int) -> tuple[nn.Linear, list[str]]:
    """Return a run's classifier, from embedding to logits, and the names of its classes.

    Raises:
        MissingArtifactError: the run has none.
        WeightsError: the files are damaged, or not of an embedding of this width.
    """
    classes, path = read_classes(folder), folder / WEIGHTS_FILE
    if classes is None or not path.is_file():
        raise MissingArtifactError(
            "the run has no classifier",
            expected=f"{WEIGHTS_FILE} and {CLASSES_FILE}, which losses over classes leave in a run's folder",
            got=str(folder),
            run="ossicle distill with loss.labels or loss.hinton, or without export.classifier",
        )
    layer = nn.Linear(embedding_dim, len(classes))
    try:
        layer.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"{path} is not this run's classifier",
            expected=f"weight ({len(classes)}, {embedding_dim}) and bias",
            got=str(error).splitlines()[0],
            run="ossicle distill RECIPE (after removing this run's folder)",
        ) from error
    return layer.eval(), classes


class WithClassifier(nn.Module):
    """A student that gives its classifier's logits beside its embedding.

    Args:
        student: log-mel to embedding (batch, dim).
        classifier: embedding to logits.
    """

    def __init__(self, student: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.student, self.classifier = student, classifier

    def forward(
        self, log_mel: Float[Tensor, "batch 1 mels frames"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch classes"]]:
        """Return embedding and logits."""
        embedding: Tensor = self.student(log_mel)
        logits: Tensor = self.classifier(embedding)
        return embedding, logits

    def logits(self, log_mel: Float[Tensor, "batch 1 mels frames"]) -> Float[Tensor, "batch classes"]:
        """Return the logits alone."""
        return self(log_mel)[1]  # type: ignore[no-any-return]
