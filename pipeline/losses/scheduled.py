"""Losses that know which update they are asked for: their weights and draws are pure functions of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.config import LossConfig
from pipeline.weight_schedule import WeightSchedule


class Scheduled(nn.Module):
    """A loss with the weights of a recipe.

    In training the weights are those of ``step`` (of the end before ``at_step``); in evaluation always those of
    the end, so that validation losses of one run can be compared.

    Attributes:
        config: the recipe's weights.
        step: the update that is being made.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.step: int | None = None

    def at_step(self, step: int, steps: int) -> None:
        """Note which update (from 0) of how many is made next; training calls this on every module that has it."""
        self.step = step

    @property
    def current_step(self) -> int | None:
        """The update whose weights hold; None = those of the end."""
        return self.step if self.training else None

    def weighted(self, terms: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and the terms before their weights (detached), with every scheduled weight.

        A term whose weight is 0 at this step alone is in the sum with gradient 0, so that every parameter has one
        at every step (data-parallel training waits for each).
        """
        weights = self.config.at(self.current_step)
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        logged = {name: term.detach() for name, term in terms.items()}
        if self.training:
            for name in terms:
                if isinstance(getattr(self.config, name), WeightSchedule):
                    logged[f"{name}_weight"] = torch.tensor(weights[name])
        return total, logged
