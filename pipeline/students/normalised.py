"""A student with its input normalisation built in: what a run saves and what is exported."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.students.base import Student


class NormalisedStudent(nn.Module):
    """``(log_mel - mean) / std``, then the backbone; or the backbone alone, where it normalises its input itself.

    Args:
        backbone: the student.
        mean, std: of the training rows' log-mel, one number each, in the frontend's unit.

    Input ``(batch, mels, frames)`` or ``(batch, 1, mels, frames)``; output ``(batch, dim)`` float32.

    Raises:
        ConfigError: ``mean`` or ``std`` is not finite, or ``std`` is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Student, mean: float, std: float) -> None:
        super().__init__()
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ConfigError(
                "the log-mel statistics cannot normalise anything",
                expected="a finite mean and a finite standard deviation above 0",
                got=f"mean {mean}, std {std}",
                run="ossicle store audit (a store of silence or of NaN rows gives such figures)",
            )
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    @property
    def embedding_dim(self) -> int:
        """Width of the embedding."""
        return self.backbone.embedding_dim

    def forward(
        self, log_mel: Float[Tensor, "batch mels frames"] | Float[Tensor, "batch 1 mels frames"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every clip."""
        if log_mel.ndim == 3:
            log_mel = log_mel[:, None]
        heard = log_mel if self.backbone.normalises_input else (log_mel - self.mean) / self.std
        embedding: Tensor = self.backbone(heard)
        return embedding
