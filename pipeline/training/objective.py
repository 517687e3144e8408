"""What a run minimises: targets, mapping head and the weighted losses together."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.config import LossConfig, RelationsConfig, TargetsConfig
from pipeline.loss_config import EMBEDDING_TERMS
from pipeline.losses.memory import Memory
from pipeline.losses.weighted import WeightedLoss
from pipeline.training.compression import Compression
from pipeline.training.projector import build_head
from pipeline.training.relations import Past, Relations
from pipeline.training.targets import TargetTransform

Terms = dict[str, Tensor]
COMPRESSION_FILE = "compression.safetensors"


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
    """Teacher embeddings become targets, the student's projections; the weighted terms compare them.

    With a head a teacher, every term is computed for each and summed by weight: relational terms then follow
    several teachers without bringing them to one width, which for squared differences is, but for a constant,
    to follow the mean of their matrices.

    Args:
        embedding_dim: width of the student's embedding.
        transform: from the teachers' rows to targets, fixed.
        config: weights of the terms.
        targets: the mapping head and the teachers' weights.
        compression: a further transformation that the labels train; students follow its output.
        relations: anchors, neighbours and the memory queue; default none of them.
        clusters: of every store row, for the contrastive kinds that ask.
        seed: of losses that draw.
    """

    def __init__(
        self,
        embedding_dim: int,
        transform: TargetTransform,
        config: LossConfig,
        targets: TargetsConfig | None = None,
        *,
        compression: Compression | None = None,
        relations: Relations | None = None,
        clusters: Int[np.ndarray, " rows"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        targets = targets or TargetsConfig()
        self.widths = transform.widths if compression is None else compression.widths
        self.head: nn.Module = build_head(targets, embedding_dim, self.widths)
        weights = torch.tensor(targets.teacher_weights or (1.0,) * len(self.widths))
        # As for rows side by side, the weights' mean is 1; of one target they have been used already.
        self.shares = (weights / weights.mean()).tolist() if len(self.widths) > 1 else [1.0]
        self.transform = transform
        self.compression = compression
        self.relations = relations or Relations(
            config, RelationsConfig(), embedding_dim, transform.output_dim
        )
        # No buffer: checkpoints and averages of the weights would each hold the store's rows once more.
        self.clusters = clusters
        self.loss = WeightedLoss(config, seed)

    @property
    def saved_heads(self) -> dict[str, nn.Module]:
        """File name to what was trained beside the student; no head where the embedding itself is compared."""
        heads = {str(self.head.file): self.head} if self.head.state_dict() else {}
        return heads | ({} if self.compression is None else {COMPRESSION_FILE: self.compression})

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
        given, embedding = embedding, embedding.float()
        past = self.relations.past(given)
        with torch.no_grad():
            target = self.transform(teacher)
        space = target if self.relations.settings.space == "target" else teacher.float()
        total, terms = self.relations(embedding, index, space, past)
        followed = target
        if self.compression is not None:
            followed = self.compression(target)
            label_term = self.compression.label_term(followed, index)
            terms["compression_labels"] = label_term.detach()
            if self.training:  # of validation it is no part: no student gets better by it
                total = total + self.compression.weight * label_term
        if self.loss.config.uses(*EMBEDDING_TERMS):
            compared, more = self._compared(embedding, index, followed.detach(), past)
            total, terms = total + compared, {**more, **terms}
        if self.relations.active:
            self.relations.remember(given, index, target, past)
        return total, terms

    def _compared(
        self, embedding: Tensor, index: Tensor, followed: Tensor, past: Past
    ) -> tuple[Tensor, Terms]:
        """Return the losses over embeddings, summed over teachers; ``NAME_K`` is the term of teacher K."""
        projections = self.head(embedding).split(self.widths, dim=1)
        targets = followed.split(self.widths, dim=1)
        memories = self._memories(past)
        clusters = None if self.clusters is None else torch.from_numpy(self.clusters[index.cpu().numpy()])
        total = embedding.sum() * 0.0
        terms: Terms = {}
        for number, share in enumerate(self.shares):
            part, of_part = self.loss(
                embedding, projections[number], targets[number], memories[number], clusters
            )
            total = total + share * part
            if len(self.shares) == 1:
                return part, of_part
            for name, value in of_part.items():
                if name.endswith("_weight"):
                    terms[name] = value
                    continue
                terms[name] = terms.get(name, torch.zeros_like(value)) + share * value
                terms[f"{name}_{number}"] = value
        return total, terms

    @torch.no_grad()
    def _memories(self, past: Past) -> list[Memory | None]:
        """Return the remembered rows and targets that each teacher's relational terms see."""
        if not len(past.embeddings):
            return [None] * len(self.shares)
        followed = past.targets if self.compression is None else self.compression(past.targets)
        targets = followed.split(self.widths, dim=1)
        if self.loss.config.relational_on == "embedding":
            return [Memory(past.embeddings, target) for target in targets]
        rows = self.head(past.embeddings).split(self.widths, dim=1)
        return [Memory(row, target) for row, target in zip(rows, targets, strict=True)]
