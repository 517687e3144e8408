"""Relations beyond the batch, as the objective uses them: the memory queue, the anchors and the neighbours."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.config import LossConfig, RelationsConfig
from pipeline.losses.anchor_wise import anchor_wise
from pipeline.losses.neighbour_wise import neighbour_wise
from pipeline.losses.scheduled import Scheduled
from pipeline.training.memory_queue import MemoryQueue
from pipeline.training.relation_table import RelationTable


@dataclass(frozen=True)
class Past:
    """What earlier batches left, as it was before this one.

    Attributes:
        embeddings: the student's of earlier batches.
        targets: theirs.
        index: the store rows they are of.
        anchors: the student's side of the anchors.
        met: which anchors any batch has met.
    """

    embeddings: Float[Tensor, "memory dim"]
    targets: Float[Tensor, "memory target"]
    index: Int[Tensor, " memory"]
    anchors: Float[Tensor, "anchors dim"]
    met: Bool[Tensor, " anchors"]


class Relations(Scheduled):
    """Terms that see beyond the batch, and what they remember of earlier batches.

    The student's side of an anchor is learnt from the batches: of a centre the moving average of the
    embeddings of the rows nearest to it, as the centre is the mean of theirs in the teacher's space; of an
    anchor row its embedding when it was last seen. An anchor that no batch has met is left out.

    In evaluation nothing is remembered, the queue is not looked at, and there is no neighbour term: held-out
    rows have no neighbours among the rows that are trained on.

    Args:
        loss: weights of ``anchor`` and ``neighbour``.
        config: ``[relations]``.
        embedding_dim: width of the student's embedding.
        target_dim: width of the targets that the queue holds.
        table: what was made of the store; needed where a term has a weight.
    """

    student_anchors: Tensor
    seen: Tensor

    def __init__(
        self,
        loss: LossConfig,
        config: RelationsConfig,
        embedding_dim: int,
        target_dim: int,
        table: RelationTable | None = None,
    ) -> None:
        super().__init__(loss)
        self.settings = config
        self.queue = MemoryQueue(config.queue_rows, embedding_dim, target_dim)
        # No buffers: checkpoints and averages of the weights would each hold the store's rows once more.
        self.table = table
        anchors = len(table.anchors) if table is not None else 0
        self.register_buffer("student_anchors", torch.zeros(anchors, embedding_dim))
        self.register_buffer("seen", torch.zeros(anchors, dtype=torch.bool))
        self._last: tuple[weakref.ref[Tensor], Past] | None = None

    @property
    def active(self) -> bool:
        """Whether this call trains: then there is a memory to use and to fill."""
        return self.training and torch.is_grad_enabled()

    def past(self, embedding: Float[Tensor, "batch dim"]) -> Past:
        """Return what was there before this batch; asked again with the same tensor, the same.

        Under mixup a batch is compared twice, and shall not meet itself the second time.
        """
        if self.active and self._last is not None and self._last[0]() is embedding:
            return self._last[1]
        embeddings, targets, index = self.queue.remembered()
        if not self.active:
            embeddings, targets, index = embeddings[:0], targets[:0], index[:0]
        return Past(embeddings, targets, index, self.student_anchors.clone(), self.seen.clone())

    def forward(
        self,
        embedding: Float[Tensor, "batch dim"],
        index: Int[Tensor, " batch"],
        space: Float[Tensor, "batch space"],
        past: Past,
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Return the weighted sum of the anchor and the neighbour term, and each before its weight.

        Args:
            embedding: the student's.
            index: the store rows that the batch is of.
            space: the batch in the teacher's space that the table was made of.
            past: what earlier batches left.
        """
        terms: dict[str, Tensor] = {}
        if self.table is not None and self.config.uses("anchor"):
            anchors = self.table.anchors.to(space.device)
            terms["anchor"] = anchor_wise(embedding, space, past.anchors[past.met], anchors[past.met])
        if self.table is not None and self.config.uses("neighbour") and self.active:
            terms["neighbour"] = self._neighbour(embedding, index, past)
        return self.weighted(terms) if terms else (embedding.sum() * 0.0, {})

    def _neighbour(self, embedding: Tensor, index: Tensor, past: Past) -> Tensor:
        assert self.table is not None
        candidates = torch.cat([embedding, past.embeddings])
        rows = torch.cat([index, past.index])
        of_batch = self.table.neighbours[index.cpu()].to(index.device)
        near = torch.zeros(len(index), len(rows), dtype=torch.bool, device=index.device)
        for column in of_batch.T:
            near |= column[:, None] == rows[None, :]
        itself = index[:, None] == rows[None, :]
        return neighbour_wise(embedding, candidates, near, itself, self.settings.neighbour_temperature)

    @torch.no_grad()
    def remember(
        self,
        embedding: Float[Tensor, "batch dim"],
        index: Int[Tensor, " batch"],
        target: Float[Tensor, "batch target"],
        past: Past,
    ) -> None:
        """Take a batch in: queue it, and move the student's side of the anchors it stands for.

        The same tensor again, and a batch that is not finite, change nothing.
        """
        if not self.queue.rows and not len(self.seen):
            return
        if self._last is not None and self._last[0]() is embedding:
            return
        self._last = (weakref.ref(embedding), past)
        rows = embedding.detach().float()
        if not bool(torch.isfinite(rows).all()):
            return
        self.queue.push(rows, target, index)
        if self.table is None or not len(self.seen):
            return
        anchor_of = self.table.anchor_of[index.cpu()].to(index.device).long()
        members = torch.nn.functional.one_hot(anchor_of + 1, len(self.seen) + 1)[:, 1:].to(rows.dtype)
        counts = members.sum(dim=0)
        met = counts > 0
        means = (members.T @ rows)[met] / counts[met][:, None]
        kept = self.settings.anchor_momentum if self.settings.anchor_kind == "centres" else 0.0
        share = torch.where(self.seen[met], kept, 0.0).to(rows.dtype)[:, None]
        self.student_anchors[met] = share * self.student_anchors[met] + (1 - share) * means
        self.seen |= met
