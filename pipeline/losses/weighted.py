"""The weighted sum of the losses that a recipe asks for."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.config import LossConfig
from pipeline.errors import ConfigError
from pipeline.losses.angle_wise import angle_wise
from pipeline.losses.cosine_wise import cosine_wise
from pipeline.losses.distance_wise import distance_wise
from pipeline.losses.feature_wise import feature_wise
from pipeline.losses.memory import Memory


class WeightedLoss(nn.Module):
    """Sums distance-, angle-, cosine- and feature-wise losses with the weights of a recipe.

    The feature-wise term always looks at the projection, the relational ones where
    ``config.relational_on`` says. A term of weight 0 is neither computed nor reported.

    Example:
        >>> loss = WeightedLoss(LossConfig(distance=1, angle=2, feature=0))
        >>> total, terms = loss(embedding, None, target)  # terms: {"distance": ..., "angle": ...}
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def needs_projection(self) -> bool:
        """Whether a projection must be given."""
        relational = self.config.distance + self.config.angle + self.config.cosine
        return self.config.feature > 0 or (relational > 0 and self.config.relational_on == "projection")

    def forward(
        self,
        embedding: Float[Tensor, "batch dim"],
        projection: Float[Tensor, "batch target_dim"] | None,
        target: Float[Tensor, "batch target_dim"],
        memory: Memory | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Return the weighted sum and each term before its weight (detached), by name.

        Args:
            embedding: the student's embedding.
            projection: the embedding after the projector; None where ``needs_projection`` is false.
            target: the teacher's rows after the recipe's transform; gets no gradient.
            memory: further rows that the relational terms, and only they, see; they get no gradient.

        Raises:
            ConfigError: a projection is needed and not given, or shapes do not fit.
        """
        config = self.config
        terms: dict[str, Tensor] = {}
        if self.needs_projection and projection is None:
            raise ConfigError(
                "the loss looks at the projection and was given none",
                expected="(batch, target_dim)",
                run="give a projection, or set loss.feature=0 and loss.relational_on=embedding",
            )
        related = projection if config.relational_on == "projection" else embedding
        related_target = target
        if related is not None and memory is not None:
            related, related_target = memory.extended(related, target)
        if related is not None and config.distance > 0:
            terms["distance"] = distance_wise(related, related_target)
        if related is not None and config.angle > 0:
            terms["angle"] = angle_wise(related, related_target)
        if related is not None and config.cosine > 0:
            terms["cosine"] = cosine_wise(related, related_target, config.cosine_kind)
        if projection is not None and config.feature > 0:
            terms["feature"] = feature_wise(projection, target, config.feature_kind)
        weighted = [getattr(config, name) * term for name, term in terms.items()]
        return torch.stack(weighted).sum(), {name: term.detach() for name, term in terms.items()}
