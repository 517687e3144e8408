"""Rows that relational losses see beside the batch: embeddings of earlier batches, as they were then.

Cross-batch memory (XBM), Wang, Zhang, Huang and Scott, CVPR 2020; the queue is that of MoCo, He, Fan, Wu, Xie
and Girshick, CVPR 2020, without its momentum encoder: a student's embeddings drift slowly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Memory:
    """Remembered rows; they get no gradient.

    Attributes:
        rows: the student's, ``(memory, dim)``, in the space where the relational losses look.
        targets: their targets, ``(memory, target_dim)``.
    """

    rows: Float[Tensor, "memory dim"]
    targets: Float[Tensor, "memory target_dim"]

    def __len__(self) -> int:
        return len(self.rows)

    def extended(
        self, rows: Float[Tensor, "batch dim"], targets: Float[Tensor, "batch target_dim"]
    ) -> tuple[Float[Tensor, "all dim"], Float[Tensor, "all target_dim"]]:
        """Return the batch's rows and targets with the remembered ones below them.

        A loss that is a mean over pairs gives a row of the batch the gradient of its mean pair, whatever the
        number of rows; of B + M rows all are in the mean, but only B get a gradient, which would be B / (B + M)
        of what B rows alone get. So the batch's gradient is multiplied by (B + M) / B: a weight means the same
        with and without memory. Values are not touched.

        Raises:
            ConfigError: other widths than the remembered ones.
        """
        if not len(self):
            return rows, targets
        self.require_widths(rows, targets)
        factor = (len(rows) + len(self)) / len(rows)
        scaled = rows.detach() + factor * (rows - rows.detach())
        return (
            torch.cat([scaled, self.rows.detach().to(rows.dtype)]),
            torch.cat([targets, self.targets.detach().to(targets.dtype)]),
        )

    def require_widths(self, rows: Tensor, targets: Tensor) -> None:
        """Raise ConfigError unless ``rows`` and ``targets`` are as wide as what is remembered."""
        if (rows.shape[1], targets.shape[1]) != (self.rows.shape[1], self.targets.shape[1]):
            raise ConfigError(
                "remembered rows and the batch have other widths",
                expected=(self.rows.shape[1], self.targets.shape[1]),
                got=(rows.shape[1], targets.shape[1]),
            )
