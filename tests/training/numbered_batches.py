"""Batches that are a function of their number, a small student with a batch norm, and squared errors to learn by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.loader import Batch

ROWS, MELS, FRAMES, DIM = 6, 4, 5, 3


class NumberedLoader:
    """Endless batches, each a function of its number."""

    def __init__(self) -> None:
        self.number = 0

    @staticmethod
    def numbered(number: int) -> Batch:
        """Return batch ``number``."""
        generator = torch.Generator().manual_seed(number)
        return Batch(
            torch.arange(ROWS) + 100 * number,
            torch.randn(ROWS, MELS, FRAMES, generator=generator).half(),
            torch.randn(ROWS, DIM, generator=generator),
        )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.number += 1
            yield self.numbered(self.number - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


class BatchNormStudent(nn.Module):
    """One convolution, its batch norm and the mean over the map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, DIM, 3)
        self.norm = nn.BatchNorm2d(DIM)

    def forward(self, log_mel: Tensor) -> Tensor:
        embedding: Tensor = self.norm(self.conv(log_mel)).mean(dim=(2, 3))
        return embedding


class SquaredErrors(nn.Module):
    """The objective: a linear head's mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(DIM, DIM)

    def forward(self, embedding: Tensor, index: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.head(embedding) - teacher).square().mean(), {}
