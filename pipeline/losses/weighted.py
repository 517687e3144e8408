"""The weighted sum of the losses over embeddings that a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.config import LossConfig
from pipeline.errors import ConfigError
from pipeline.loss_config import EMBEDDING_TERMS, RELATIONAL_TERMS
from pipeline.losses.angle_sampled import sampled_angle_wise
from pipeline.losses.angle_wise import angle_wise
from pipeline.losses.beside_memory import cosine_beside, distance_beside
from pipeline.losses.contrastive import contrastive
from pipeline.losses.cosine_wise import cosine_wise
from pipeline.losses.distance_correlation import distance_correlation
from pipeline.losses.distance_wise import distance_wise
from pipeline.losses.feature_wise import feature_wise
from pipeline.losses.kernel_alignment import kernel_alignment
from pipeline.losses.memory import Memory
from pipeline.losses.scheduled import Scheduled
from pipeline.losses.similarity_preserving import similarity_preserving

# Splits the draws of triplets from other uses of the same seed and step.
TRIPLETS_STREAM = 0x7219_0000_0000


class WeightedLoss(Scheduled):
    """Sums the losses over embeddings with the weights of a recipe.

    The feature-wise and the contrastive term always look at the projection, the relational ones where
    ``config.relational_on`` says. A term whose weight is 0 at every step is neither computed nor reported.

    Args:
        config: the weights and kinds.
        seed: of the triplets, where the angle-wise loss draws them.

    Example:
        >>> loss = WeightedLoss(LossConfig(distance=1, angle=2, feature=0))
        >>> total, terms = loss(embedding, None, target)  # terms: {"distance": ..., "angle": ...}
    """

    def __init__(self, config: LossConfig, seed: int = 0) -> None:
        super().__init__(config)
        self.seed = seed

    @property
    def needs_projection(self) -> bool:
        """Whether a projection must be given."""
        relational = self.config.uses(*RELATIONAL_TERMS) and self.config.relational_on == "projection"
        return relational or self.config.uses("feature", "contrastive")

    def forward(
        self,
        embedding: Float[Tensor, "batch dim"],
        projection: Float[Tensor, "batch target_dim"] | None,
        target: Float[Tensor, "batch target_dim"],
        memory: Memory | None = None,
        clusters: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Return the weighted sum and each term before its weight (detached), by name.

        A weight that follows a schedule is among the terms as ``NAME_weight`` while training.

        Args:
            embedding: the student's embedding.
            projection: the embedding after the projector; None where ``needs_projection`` is false.
            target: the teacher's rows after the recipe's transform; gets no gradient.
            memory: further rows that the relational terms, and only they, see; they get no gradient.
            clusters: of each row in the teacher's space, for the contrastive kinds that ask.

        Raises:
            ConfigError: a projection is needed and not given, or shapes do not fit.
        """
        config = self.config
        if self.needs_projection and projection is None:
            raise ConfigError(
                "the loss looks at the projection and was given none",
                expected="(batch, target_dim)",
                run="give a projection, or set loss.feature=0 and loss.relational_on=embedding",
            )
        terms: dict[str, Tensor] = {}
        related = projection if config.relational_on == "projection" else embedding
        if related is not None:
            losses = self._relational() if memory is None else self._beside(memory)
            terms = {name: term(related, target) for name, term in losses.items() if config.uses(name)}
        if projection is not None and config.uses("feature"):
            terms["feature"] = feature_wise(projection, target, config.feature_kind)
        if projection is not None and config.uses("contrastive"):
            terms["contrastive"] = contrastive(
                projection, target, config.contrastive_kind, config.contrastive_temperature, clusters,
                config.contrastive_masked,
            )  # fmt: skip
        if not terms:
            raise ConfigError(
                "no term of the loss looks at the embedding",
                expected=f"a weight of {', '.join(EMBEDDING_TERMS)}",
            )
        return self.weighted(terms)

    def _relational(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        config = self.config
        return {
            "distance": distance_wise,
            "angle": self._angle,
            "cosine": lambda ours, theirs: cosine_wise(ours, theirs, config.cosine_kind),
            "distance_correlation": lambda ours, theirs: distance_correlation(
                ours, theirs, config.distance_correlation_kind
            ),
            "similarity": similarity_preserving,
            "kernel": lambda ours, theirs: kernel_alignment(
                ours, theirs, config.kernel_kind, config.kernel_bandwidth, config.kernel_unbiased
            ),
        }

    def _beside(self, memory: Memory) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """Return the relational losses of a batch among remembered rows."""
        config = self.config

        def among(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda ours, theirs: loss(*memory.extended(ours, theirs))

        return {
            **{name: among(loss) for name, loss in self._relational().items()},
            "distance": lambda ours, theirs: distance_beside(ours, theirs, memory),
            "cosine": lambda ours, theirs: cosine_beside(ours, theirs, memory, config.cosine_kind),
        }

    def _angle(self, ours: Tensor, theirs: Tensor) -> Tensor:
        triplets = self.config.angle_triplets
        if triplets is None or triplets >= len(ours) ** 3:
            return angle_wise(ours, theirs)
        # Validation has one draw, whenever it is made.
        step = 0 if self.current_step is None else 1 + self.current_step
        generator = torch.Generator().manual_seed((TRIPLETS_STREAM + (self.seed << 20) + step) % 2**63)
        return sampled_angle_wise(ours, theirs, triplets, generator)
