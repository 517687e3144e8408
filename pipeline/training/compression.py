"""Embedding compression: teacher embeddings transformed by what the labels teach, and followed by the student.

Ding and Lerch, "Embedding compression for teacher-to-student knowledge transfer", 2024 (after their "Audio
embeddings as teachers for music classification", ISMIR 2023): a transformation of the teacher's embedding to the
student's width is trained together with the student, by the target task's loss on the teacher's side alone;
the distance to the student goes through a stop-gradient, so that the teacher is not dragged down to it. With
several teachers side by side it is a linear fusion that the labels learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.config import TargetsConfig
from pipeline.errors import ConfigError

LabelLoss = Callable[[Tensor, Tensor], Tensor]


class Compression(nn.Module):
    """A transformation a teacher, each with a classifier of its own that trains it.

    Args:
        config: kind, widths and weight.
        widths: of the teachers' targets, side by side in a row.
        output_dim: what each becomes.
        classes: number of label classes.
        label_loss: ``(logits (batch, classes), index (batch,))`` to the scalar loss of the rows that have
            labels, 0 with a gradient of 0 where none has.

    Raises:
        ConfigError: ``config.compression`` is "none".
    """

    def __init__(
        self,
        config: TargetsConfig,
        widths: Sequence[int],
        output_dim: int,
        classes: int,
        label_loss: LabelLoss,
    ) -> None:
        super().__init__()
        if config.compression == "none":
            raise ConfigError("there is no compression to build", expected="linear or mlp", got="none")
        self.weight, self.label_loss = config.compression_weight, label_loss
        self.input_widths = tuple(widths)
        self.output_dim = output_dim
        self.transforms = nn.ModuleList(_transform(config, width, output_dim) for width in widths)
        self.classifiers = nn.ModuleList(nn.Linear(output_dim, classes) for _ in widths)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the compressed targets, side by side in a row."""
        return (self.output_dim,) * len(self.transforms)

    def forward(self, targets: Float[Tensor, "batch targets"]) -> Float[Tensor, "batch compressed"]:
        """Return the compressed targets of every teacher, side by side, with gradient."""
        parts = targets.split(self.input_widths, dim=1)
        return torch.cat(
            [transform(part) for transform, part in zip(self.transforms, parts, strict=True)], dim=1
        )

    def label_term(
        self, compressed: Float[Tensor, "batch compressed"], index: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Return the mean over teachers of the label loss on their compressed embeddings."""
        parts = compressed.split(self.widths, dim=1)
        losses = [
            self.label_loss(classifier(part), index)
            for classifier, part in zip(self.classifiers, parts, strict=True)
        ]
        return torch.stack(losses).mean()


def _transform(config: TargetsConfig, width: int, output_dim: int) -> nn.Module:
    if config.compression == "linear":
        return nn.Linear(width, output_dim)
    return nn.Sequential(
        nn.Linear(width, config.compression_hidden),
        nn.ReLU(),
        nn.Linear(config.compression_hidden, output_dim),
    )
