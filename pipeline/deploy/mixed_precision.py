"""Which layers stay out of int8: greedy by what each costs the geometry for its operations, within a budget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.config import ExportConfig
from pipeline.deploy.fidelity import Fidelity
from pipeline.deploy.layers import Layer

# Share of the multiplying layers that may leave int8 where no share of MACs is asked for.
MAX_FLOAT_SHARE = 0.5
Score = Callable[[tuple[Layer, ...]], Fidelity]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """What int8 must keep, and how much must stay int8.

    Attributes:
        min_cosine: centred cosine to float32.
        max_overlap_loss: share of nearest neighbours that may be lost; None = any.
        min_macs_share: share of the MACs that stays int8; None = half of the multiplying layers may go.
    """

    min_cosine: float
    max_overlap_loss: float | None = None
    min_macs_share: float | None = None

    @classmethod
    def of(cls, config: ExportConfig) -> Budget:
        """Return the budget that a recipe sets."""
        return cls(config.int8_min_cosine, config.int8_max_overlap_loss, config.int8_min_macs_share)

    def met(self, fidelity: Fidelity) -> bool:
        """Return whether a file keeps what it must."""
        return self.shortfall(fidelity) <= 0

    def shortfall(self, fidelity: Fidelity) -> float:
        """Return by how much the worst of the limits is missed, as a share of what it allows; at most 0 = met."""
        missed = [_excess(1 - fidelity.centred_cosine, 1 - self.min_cosine)]
        if self.max_overlap_loss is not None:
            missed.append(_excess(1 - fidelity.neighbour_overlap, self.max_overlap_loss))
        return max(missed)


@dataclass(frozen=True)
class Choice:
    """The layers left out of int8, and what the file keeps then.

    Attributes:
        kept: layers out of int8, in the order in which they were taken.
        fidelity: of the file with them, on the rows that chose.
        met: whether the budget's limits are kept there.
        tried: quantised files that were made and judged.
    """

    kept: tuple[Layer, ...]
    fidelity: Fidelity
    met: bool
    tried: int


def choose(
    layers: Sequence[Layer], losses: Callable[[], dict[str, float]], score: Score, budget: Budget
) -> Choice:
    """Leave as few layers out of int8 as the budget's limits need, never more than its share of MACs allows.

    The layers stand in order of loss per operation, the worst first. The shortest beginning of that order that
    meets the limits is found by doubling and bisection; then each layer of it goes back to int8 if the limits
    hold without it, the most expensive first. Where no beginning meets them, the one that comes nearest is
    taken. Ties fall to the graph's order: the same losses give the same choice.

    Args:
        layers: what can be left out.
        losses: called only if a choice is needed; name of a layer to what it costs alone.
        score: judges the file in which the given layers are left out.
        budget: the limits.
    """
    judged: dict[frozenset[str], Fidelity] = {}

    def fidelity(kept: Sequence[Layer]) -> Fidelity:
        key = frozenset(layer.name for layer in kept)
        if key not in judged:
            judged[key] = score(tuple(kept))
        return judged[key]

    def choice(kept: Sequence[Layer]) -> Choice:
        found = fidelity(kept)
        return Choice(tuple(kept), found, budget.met(found), len(judged))

    if budget.met(fidelity(())):
        return choice(())
    order = affordable(ranked(layers, losses()), layers, budget.min_macs_share)
    enough = _shortest(order, lambda number: budget.met(fidelity(order[:number])))
    if enough is None:
        nearest = min(
            _doubled(len(order)), key=lambda n: (budget.shortfall(fidelity(order[:n])), n), default=0
        )
        if budget.shortfall(fidelity(())) <= budget.shortfall(fidelity(order[:nearest])):
            nearest = 0
        log.warning("int8 misses its limits with %d layers left out: %s", nearest, fidelity(order[:nearest]))
        return choice(order[:nearest])
    kept = list(order[:enough])
    for layer in sorted(kept, key=lambda one: -one.operations):
        without = [one for one in kept if one is not layer]
        if budget.met(fidelity(without)):
            kept = without
    return choice(kept)


def ranked(layers: Sequence[Layer], losses: dict[str, float]) -> list[Layer]:
    """Return the layers that cost something, the largest loss per operation first."""
    costly = [layer for layer in layers if losses[layer.name] > 0]
    return sorted(costly, key=lambda layer: -losses[layer.name] / max(layer.operations, 1))


def affordable(order: Sequence[Layer], layers: Sequence[Layer], min_macs_share: float | None) -> list[Layer]:
    """Return those of ``order`` that may all leave int8 together; one that is too large is passed over."""
    multiplying = [layer for layer in layers if layer.macs]
    left = sum(layer.macs for layer in multiplying)
    least = (min_macs_share or 0.0) * left
    most = len(layers) if min_macs_share is not None else int(MAX_FLOAT_SHARE * len(multiplying))
    taken: list[Layer] = []
    for layer in order:
        if not layer.macs:
            taken.append(layer)
        elif most and left - layer.macs >= least:
            taken.append(layer)
            left, most = left - layer.macs, most - 1
    return taken


def int8_macs_share(layers: Sequence[Layer], kept: Sequence[Layer]) -> float:
    """Return the share of the MACs that stays int8 when ``kept`` does not; 1 of a graph without MACs."""
    total = sum(layer.macs for layer in layers)
    return 1.0 - sum(layer.macs for layer in kept) / total if total else 1.0


def _shortest(order: Sequence[Layer], enough: Callable[[int], bool]) -> int | None:
    below = 0
    for number in _doubled(len(order)):
        if enough(number):
            while number - below > 1:
                middle = (below + number) // 2
                below, number = (below, middle) if enough(middle) else (middle, number)
            return number
        below = number
    return None


def _doubled(length: int) -> list[int]:
    numbers, number = [], 1
    while number < length:
        numbers.append(number)
        number *= 2
    return [*numbers, length] if length else []


def _excess(lost: float, allowed: float) -> float:
    # A limit of nothing lost has no share to speak of.
    return lost / allowed - 1 if allowed > 0 else lost
