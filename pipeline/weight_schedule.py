"""The weight of a loss term: a number, or a schedule that is a pure function of the step."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.section import Section

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class WeightSchedule(Section):
    """A weight that changes with the step (0 = the first update).

    ``linear`` and ``cosine`` go from ``start`` (until ``first_step``) to ``end`` (from ``last_step`` on), the
    cosine with zero slope at both ends. ``steps`` holds (step, weight) pairs: each weight from its step on.
    """

    kind: Literal["linear", "cosine", "steps"]
    start: NonNegative = 0.0
    end: NonNegative = 1.0
    first_step: int = Field(0, ge=0)
    last_step: int | None = Field(None, ge=1)
    values: tuple[tuple[int, NonNegative], ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> WeightSchedule:
        if self.kind == "steps":
            steps = [step for step, _ in self.values]
            if not steps or steps[0] != 0 or any(one >= two for one, two in pairwise(steps)):
                raise ValueError("kind steps needs values = [[0, W0], [STEP, W1], ...], steps rising from 0")
            if (self.start, self.end, self.first_step, self.last_step) != (0.0, 1.0, 0, None):
                raise ValueError("kind steps takes values alone")
            return self
        if self.values:
            raise ValueError(f"kind {self.kind} takes start, end, first_step and last_step, no values")
        if self.last_step is None or self.last_step <= self.first_step:
            raise ValueError(f"kind {self.kind} needs last_step above first_step {self.first_step}")
        return self

    def at(self, step: int) -> float:
        """Return the weight of update ``step``."""
        if self.kind == "steps":
            return next(weight for first, weight in reversed(self.values) if first <= step)
        assert self.last_step is not None
        share = (step - self.first_step) / (self.last_step - self.first_step)
        share = min(max(share, 0.0), 1.0)
        if self.kind == "cosine":
            share = (1.0 - math.cos(math.pi * share)) / 2.0
        return (1.0 - share) * self.start + share * self.end

    @property
    def turns(self) -> tuple[int, ...]:
        """Steps between which the weight rises or falls throughout, the last one's weight holding for ever."""
        if self.kind == "steps":
            return tuple(step for step, _ in self.values)
        assert self.last_step is not None
        return (self.first_step, self.last_step)


Weight = NonNegative | WeightSchedule


def weight_at(weight: float | WeightSchedule, step: int | None) -> float:
    """Return the weight of update ``step``; None = the one that holds in the end."""
    if not isinstance(weight, WeightSchedule):
        return weight
    return weight.at(weight.turns[-1] if step is None else step)


def turns_of(weight: float | WeightSchedule) -> tuple[int, ...]:
    """Return the steps at which the weight turns, step 0 among them."""
    return (0, *weight.turns) if isinstance(weight, WeightSchedule) else (0,)


def is_used(weight: float | WeightSchedule) -> bool:
    """Return whether the weight is above 0 at any step."""
    return any(weight_at(weight, step) > 0 for step in turns_of(weight))
