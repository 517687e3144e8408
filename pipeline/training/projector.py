"""The linear head that carries the student's embedding to the target's width. Only training uses it."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.artifact import write_bytes


class Projector(nn.Module):
    """One linear layer, student width to target width, in float32 whatever the student runs in."""

    def __init__(self, embedding_dim: int, target_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_dim, target_dim)

    def forward(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch target"]:
        """Return the student's guess of the target."""
        projected: Tensor = self.linear(embedding.float())
        return projected


def save_head(path: Path, head: nn.Module) -> None:
    """Write the head's weights as safetensors, whole."""
    state = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    write_bytes(path, safetensors.torch.save(state))
