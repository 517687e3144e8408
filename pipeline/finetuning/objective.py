"""Cross-entropy over the manifest's classes, and what a network answers for clips that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.finetuning.networks import StandardisedClassifier
from pipeline.training.precision import autocast


class ClassObjective(nn.Module):
    """The classifier and its cross-entropy; under mixup, mixed over both clips' classes.

    Args:
        embedding_dim: width of the network's embedding.
        classes: how many.
        codes: class of every clip, by its row.
        label_smoothing: share of each target spread over all classes (Szegedy et al., CVPR 2016).
    """

    codes: Tensor

    def __init__(
        self, embedding_dim: int, classes: int, codes: Int64[Tensor, " clips"], label_smoothing: float
    ) -> None:
        super().__init__()
        self.head = StandardisedClassifier(embedding_dim, classes)
        self.label_smoothing = label_smoothing
        self.register_buffer("codes", codes, persistent=False)
        self._partners: Tensor | None = None
        self._share: Tensor | None = None

    def mix(self, partners: Int64[Tensor, " batch"] | None, share: Float[Tensor, " batch"] | None) -> None:
        """Say which clips the next batch was mixed with, and how much of each is its own; None = unmixed."""
        self._partners, self._share = partners, share

    def usable(self, index: Int64[Tensor, " batch"]) -> Tensor:
        """Every clip has a class."""
        return torch.ones_like(index, dtype=torch.bool)

    def forward(
        self,
        embedding: Float[Tensor, "batch dim"],
        index: Int64[Tensor, " batch"],
        teacher: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy, and it and the accuracy as terms; ``teacher`` is not looked at."""
        logits, codes = self.head(embedding.float()), self.codes[index]
        each = F.cross_entropy(logits, codes, reduction="none", label_smoothing=self.label_smoothing)
        if self._partners is not None and self._share is not None:
            partners, share = self._partners.to(each.device), self._share.to(each)
            other = F.cross_entropy(
                logits, codes[partners], reduction="none", label_smoothing=self.label_smoothing
            )
            each = share * each + (1 - share) * other
        loss = each.mean()
        accuracy = (logits.argmax(dim=1) == codes).float().mean()
        return loss, {"cross_entropy": loss, "accuracy": accuracy}


@torch.no_grad()
def logits_of(
    network: nn.Module,
    objective: ClassObjective,
    hear: Callable[[np.ndarray], Tensor],
    rows: Int64[np.ndarray, " rows"],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Float[Tensor, "rows classes"]:
    """Return the logits of ``rows``, unaugmented, on the CPU; both parts are in evaluation mode meanwhile.

    Args:
        hear: from rows to the network's input without its channel axis.
    """
    modes = network.training, objective.training
    network.eval()
    objective.eval()
    made = []
    for start in range(0, len(rows), batch_size):
        given = hear(rows[start : start + batch_size]).to(device, torch.float32)
        with autocast(dtype, device):
            embedding = network(given.unsqueeze(1))
        made.append(objective.head(embedding.float()).cpu())
    network.train(modes[0])
    objective.train(modes[1])
    return torch.cat(made)
