"""What quantisation-aware distillation minimises: the run's own objective, and the way back to its float32 self."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.quantisation.graph import QuantisedGraph


class BesideFloat(nn.Module):
    """The rounding graph; while training, with the float32 student's embedding of the same batch beside its own.

    The float32 student is no part of the module: it has no gradient, no average and no place in checkpoints.

    Args:
        graph: trained.
        reference: takes the same input; stays as it is. None = only the graph's embedding.
    """

    def __init__(self, graph: QuantisedGraph, reference: nn.Module | None) -> None:
        super().__init__()
        self.graph = graph
        self._reference = [] if reference is None else [reference.eval().requires_grad_(False)]

    def forward(self, log_mel: Float[Tensor, "batch 1 mels time"]) -> Float[Tensor, "batch width"]:
        """Return ``(batch, dim)``; while training with a reference ``(batch, 2 dim)``, the rounded first."""
        embedding: Tensor = self.graph(log_mel)
        if not self.training or not self._reference:
            return embedding
        with torch.no_grad():
            wanted = self._reference[0](log_mel)
        return torch.cat([embedding, wanted], dim=1)


class QatObjective(nn.Module):
    """The sum of the run's objective and of the squared distance to the float32 embedding, by their weights.

    The distance is a share of the float32 embeddings' variance: 1 = as far as their mean is.

    Args:
        inner: the run's own objective, with its trained head; None = the float32 student alone is followed.
        teacher_weight: of ``inner``.
        student_weight: of the distance.
        index: store rows of ``reference``; reference: their float32 embeddings ``(rows, dim)``, for validation.
    """

    reference: Tensor

    def __init__(
        self,
        inner: nn.Module | None,
        teacher_weight: float,
        student_weight: float,
        index: Int[Tensor, " rows"],
        reference: Float[Tensor, "rows dim"],
    ) -> None:
        super().__init__()
        self.inner = inner if teacher_weight else None
        self.teacher_weight, self.student_weight = teacher_weight, student_weight
        self._place = {int(row): place for place, row in enumerate(index)}
        # Made anew from the run whenever it is needed: no part of a checkpoint.
        self.register_buffer("reference", reference, persistent=False)
        spread = reference - reference.mean(dim=0)
        self.variance = max(float(spread.square().sum(dim=1).mean()), torch.finfo(torch.float32).tiny)

    @property
    def head(self) -> nn.Module:
        """The inner objective's head."""
        return nn.Identity() if self.inner is None else self.inner.head  # type: ignore[return-value]

    @property
    def saved_heads(self) -> dict[str, nn.Module]:
        """File name to head, as the inner objective has them."""
        return {} if self.inner is None else self.inner.saved_heads  # type: ignore[return-value]

    def usable(self, index: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Rows that the inner objective has a target for."""
        if self.inner is None:
            return torch.ones_like(index, dtype=torch.bool)
        return self.inner.usable(index)  # type: ignore[operator,no-any-return]

    def forward(
        self,
        embedding: Float[Tensor, "batch width"],
        index: Int[Tensor, " batch"],
        teacher: Float[Tensor, "batch teacher"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms; ``float_distance`` is the share of the float32 variance that is lost."""
        dim = self.reference.shape[1]
        own, wanted = embedding[:, :dim].float(), embedding[:, dim:]
        total, terms = own.sum() * 0.0, dict[str, Tensor]()
        if self.inner is not None:
            inner, terms = self.inner(own, index, teacher)
            total = self.teacher_weight * inner
        if self.student_weight:
            if not wanted.shape[1]:
                wanted = self.reference[[self._place[int(row)] for row in index]]
            distance = (own - wanted).square().sum(dim=1).mean() / self.variance
            total = total + self.student_weight * distance
            terms = {**terms, "float_distance": distance}
        return total, terms
