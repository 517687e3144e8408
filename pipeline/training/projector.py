"""Mapping heads: what carries the student's embedding to the target's width. Only training uses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.artifact import write_bytes
from pipeline.config import TargetsConfig
from pipeline.errors import ConfigError

LINEAR_FILE, OTHER_FILE = "projector.safetensors", "head.safetensors"
# Uniform bound of a hint regressor's first weights in the code of RKD's authors (Park et al., CVPR 2019).
HINT_BOUND = 0.005


class Projector(nn.Module):
    """One linear layer, student width to target width, in float32 whatever the student runs in."""

    file = LINEAR_FILE

    def __init__(self, embedding_dim: int, target_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_dim, target_dim)

    def forward(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch target"]:
        """Return the student's guess of the target."""
        projected: Tensor = self.linear(embedding.float())
        return projected


class HintRegressor(nn.Module):
    """FitNets' regressor on a pooled embedding: a 1x1 convolution without bias, which is a linear map.

    Romero, Ballas, Kahou, Chassang, Gatta and Bengio, "FitNets: hints for thin deep nets", ICLR 2015.
    """

    file = OTHER_FILE

    def __init__(self, embedding_dim: int, target_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_dim, target_dim, bias=False)
        nn.init.uniform_(self.linear.weight, -HINT_BOUND, HINT_BOUND)

    def forward(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch target"]:
        """Return the student's guess of the hint."""
        projected: Tensor = self.linear(embedding.float())
        return projected


class MlpHead(nn.Module):
    """S-SONDO's head: linear, Hardswish, dropout, linear; its state names are the published ones.

    El Adlouni et al., "S-SONDO", ICASSP 2026. Rows of several segments are mapped one by one, then averaged.

    Args:
        embedding_dim: the student's width (published: 960).
        target_dim: the target's width (published: 3,840).
        hidden: width between (published: 1,280).
        dropout: share dropped while training (published: 0.2).
    """

    file = OTHER_FILE

    def __init__(
        self, embedding_dim: int, target_dim: int, hidden: int = 1_280, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(embedding_dim, hidden),
            nn.Hardswish(),
            nn.Dropout(dropout),
            nn.Linear(hidden, target_dim),
        )

    def forward(
        self, embedding: Float[Tensor, "batch dim"] | Float[Tensor, "batch segments dim"]
    ) -> Float[Tensor, "batch target"]:
        """Return the student's guess of the target."""
        mapped: Tensor = self.mlp(embedding.float())
        return mapped.mean(dim=1) if mapped.ndim == 3 else mapped


class NoHead(nn.Module):
    """The embedding itself, once a teacher."""

    file = OTHER_FILE

    def __init__(self, teachers: int = 1) -> None:
        super().__init__()
        self.teachers = teachers

    def forward(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch target"]:
        """Return the rows, side by side ``teachers`` times."""
        return embedding.float().repeat(1, self.teachers)


class SideBySide(nn.Module):
    """Several heads of the same embedding; their outputs lie side by side."""

    file = OTHER_FILE

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch target"]:
        """Return every head's output."""
        return torch.cat([head(embedding) for head in self.heads], dim=1)


def build_head(config: TargetsConfig, embedding_dim: int, widths: Sequence[int]) -> nn.Module:
    """Return the mapping head of ``config``: ``(batch, embedding_dim)`` to ``(batch, sum of widths)``.

    Args:
        config: which head, and its widths.
        embedding_dim: the student's width.
        widths: of the targets, one a head; several have nothing in common but the embedding (linear maps of
            one embedding are one linear map, whose rows are nobody else's).

    Raises:
        ConfigError: no head, and a target of another width than the embedding.
    """
    total = sum(widths)
    if config.head == "linear":
        return Projector(embedding_dim, total)
    if config.head == "hint":
        return HintRegressor(embedding_dim, total)
    if config.head == "mlp":
        made = [MlpHead(embedding_dim, width, config.head_hidden, config.head_dropout) for width in widths]
        return made[0] if len(made) == 1 else SideBySide(made)
    if any(width != embedding_dim for width in widths):
        raise ConfigError(
            'targets.head = "none" compares the embedding with its target, and their widths differ',
            expected=f"targets as wide as the student's embedding, {embedding_dim}",
            got=", ".join(map(str, widths)),
            run=f"--set student.embedding_dim={widths[0]}, --set targets.components={embedding_dim}, "
            "or --set targets.head=linear",
        )
    return NoHead(len(widths))


def save_head(path: Path, head: nn.Module) -> None:
    """Write the head's weights as safetensors, whole."""
    state = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    write_bytes(path, safetensors.torch.save(state))
