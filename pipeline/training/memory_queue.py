"""The memory queue: the last rows that a student embedded, beside the targets they had.

Cross-batch memory (Wang et al., CVPR 2020) with the first-in, first-out order of MoCo (He et al., CVPR 2020).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class MemoryQueue(nn.Module):
    """The last ``rows`` embeddings, their targets and store rows, in buffers, so that checkpoints hold them.

    Args:
        rows: how many are remembered; 0 = none.
        embedding_dim: width of the student's embedding.
        target_dim: width of the targets.
    """

    embeddings: Tensor
    targets: Tensor
    index: Tensor
    count: Tensor

    def __init__(self, rows: int, embedding_dim: int, target_dim: int) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("embeddings", torch.zeros(rows, embedding_dim))
        self.register_buffer("targets", torch.zeros(rows, target_dim))
        self.register_buffer("index", torch.full((rows,), -1, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return min(int(self.count), self.rows)

    def remembered(
        self,
    ) -> tuple[Float[Tensor, "memory dim"], Float[Tensor, "memory target"], Int[Tensor, " memory"]]:
        """Return embeddings, targets and store rows of what is remembered; the order is that of the places.

        Copies: what a graph was made of must not change when ``push`` writes.
        """
        filled = len(self)
        return self.embeddings[:filled].clone(), self.targets[:filled].clone(), self.index[:filled].clone()

    @torch.no_grad()
    def push(
        self,
        embeddings: Float[Tensor, "batch dim"],
        targets: Float[Tensor, "batch target"],
        index: Int[Tensor, " batch"],
    ) -> None:
        """Remember a batch in place of the oldest rows; of one longer than the queue its last rows.

        Rows that are not finite would stay for a whole round: such a batch is not remembered.
        """
        if self.rows == 0 or not bool(torch.isfinite(embeddings).all()):
            return
        start = int(self.count) + max(len(index) - self.rows, 0)
        kept = slice(max(len(index) - self.rows, 0), None)
        places = (torch.arange(start, int(self.count) + len(index)) % self.rows).to(self.index.device)
        self.embeddings[places] = embeddings[kept].detach().to(self.embeddings.dtype)
        self.targets[places] = targets[kept].detach().to(self.targets.dtype)
        self.index[places] = index[kept]
        self.count += len(index)
