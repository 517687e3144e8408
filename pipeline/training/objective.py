"""What a run minimises: the projector, the targets and the weighted relational losses together."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.config import LossConfig
from pipeline.losses.weighted import WeightedLoss
from pipeline.training.projector import Projector
from pipeline.training.targets import TargetTransform


class Objective(Protocol):
    """A module with its own trained head. Called with the student's embeddings and the batch they are of."""

    head: nn.Module

    def usable(self, index: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Which store rows it has a target for."""
        ...

    def __call__(
        self,
        embedding: Float[Tensor, "batch dim"],
        index: Int[Tensor, " batch"],
        teacher: Float[Tensor, "batch teacher"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms, scalars in float32."""
        ...


class DistilObjective(nn.Module):
    """Teacher embeddings become targets, the student's projections; the weighted terms compare them."""

    def __init__(self, embedding_dim: int, transform: TargetTransform, config: LossConfig) -> None:
        super().__init__()
        self.head: nn.Module = Projector(embedding_dim, transform.output_dim)
        self.transform = transform
        self.loss = WeightedLoss(config)

    def usable(self, index: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Every row of a store has a teacher embedding."""
        return torch.ones_like(index, dtype=torch.bool)

    def forward(
        self,
        embedding: Float[Tensor, "batch dim"],
        index: Int[Tensor, " batch"],
        teacher: Float[Tensor, "batch teacher"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and each term."""
        embedding = embedding.float()
        total, terms = self.loss(embedding, self.head(embedding), self.transform(teacher))
        return total, dict(terms)
