"""Which file to ship: the cheapest of those that keep float32's geometry. Plain figures in, a verdict out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

FLOAT = "fp32"
# What is decided on where no cost was measured: the size of the file.
BY_SIZE = "file_bytes"


@dataclass(frozen=True)
class Limits:
    """What a quantised file may lose.

    Attributes:
        min_cosine: centred cosine to float32.
        min_overlap: share of each row's nearest neighbours in float32 that it must find.
        max_probe_drop: accuracy that a probe may lose, in [0, 1]; half a point by default.
    """

    min_cosine: float = 0.99
    min_overlap: float = 0.97
    max_probe_drop: float = 0.005

    @classmethod
    def of_export(cls, settings: Mapping[str, Any]) -> Limits:
        """Return the limits that ``[export]`` asks for, given as plain values."""
        loss = settings.get("int8_max_overlap_loss")
        return cls(
            settings.get("int8_min_cosine", cls.min_cosine), cls.min_overlap if loss is None else 1 - loss
        )


@dataclass(frozen=True)
class FileFigures:
    """One file.

    Attributes:
        precision: ``fp32``, ``s8s8``, ``u8s8``, ``w8``, ``w4``, ...; one is ``fp32``.
        file_bytes: its size.
        costs: name of a cost to its value, lower is better: executed instructions by CPU, a board's milliseconds.
        centred_cosine, neighbour_overlap, probe_drop: against float32; None = not measured, which refuses nothing.
    """

    precision: str
    file_bytes: int
    costs: Mapping[str, float] = field(default_factory=dict)
    centred_cosine: float | None = None
    neighbour_overlap: float | None = None
    probe_drop: float | None = None

    def losses(self, limits: Limits) -> list[str]:
        """Return what this file loses beyond ``limits``, in words."""
        found = []
        if self.centred_cosine is not None and self.centred_cosine < limits.min_cosine:
            found.append(f"centred cosine {self.centred_cosine:.4f} < {limits.min_cosine:g}")
        if self.neighbour_overlap is not None and self.neighbour_overlap < limits.min_overlap:
            found.append(f"neighbour overlap {self.neighbour_overlap:.3f} < {limits.min_overlap:g}")
        if self.probe_drop is not None and self.probe_drop > limits.max_probe_drop:
            found.append(f"probe drop {self.probe_drop:.3f} > {limits.max_probe_drop:g}")
        return found


@dataclass(frozen=True)
class Verdict:
    """What to ship.

    Attributes:
        ship: name of a cost (``cortex-a76``) to the precision that is the cheapest by it and loses nothing that
            matters; ``file_bytes`` where no cost is known of any quantised file.
        reasons: precision of a file that is not shipped to why, one line a reason.
    """

    ship: dict[str, str]
    reasons: dict[str, list[str]]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def decide(files: Sequence[FileFigures], limits: Limits | None = None) -> Verdict:
    """Say which of ``files`` to ship, by each cost that was measured of float32 and of another file.

    A file that loses more than ``limits`` is never shipped, nor one that costs as much as float32 or more. Files
    that cost the same are told apart by their size, then by their order.

    Args:
        files: one of them is ``fp32``.
        limits: what may be lost.

    Raises:
        ValueError: no file, or several, are ``fp32``, or a precision stands twice.
    """
    limits = limits or Limits()
    by_name = {one.precision: one for one in files}
    if FLOAT not in by_name or len(by_name) != len(files):
        raise ValueError(
            f"one {FLOAT} file and others of distinct precision wanted: {[f.precision for f in files]}"
        )
    whole = by_name[FLOAT]
    others = [one for one in files if one is not whole]
    reasons = {one.precision: one.losses(limits) for one in others}
    sound = [one for one in others if not reasons[one.precision]]
    names = [name for name in whole.costs if any(name in one.costs for one in others)]
    ship: dict[str, str] = {}
    for name in names or [BY_SIZE]:
        cost = {one.precision: _cost(one, name) for one in files}
        for one in others:
            here = cost[one.precision]
            if here is not None and here >= (limit := cost[FLOAT] or 0.0):
                ratio = here / limit if limit else float("inf")
                reasons[one.precision].append(f"{name}: {ratio:.2f} x float32's")
        known = [one for one in sound if cost[one.precision] is not None]
        best = min([*known, whole], key=lambda one: (cost[one.precision], one.file_bytes))
        tied = cost[best.precision] == cost[FLOAT]
        ship[name] = FLOAT if tied else best.precision
    shipped = set(ship.values())
    return Verdict(ship, {name: why for name, why in reasons.items() if name not in shipped or why})


def _cost(one: FileFigures, name: str) -> float | None:
    return float(one.file_bytes) if name == BY_SIZE else one.costs.get(name)
