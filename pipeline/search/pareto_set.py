"""What a budget search found: every candidate with its costs, the Pareto set, and the hand-made beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.search import study as studies
from pipeline.search.budget import COST, last_rung
from pipeline.search.pareto import hypervolume, non_dominated
from pipeline.search.results import outcome_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SCHEMA = "ossicle-search/1"


@dataclass(frozen=True)
class Point:
    """A student with its score and costs: a candidate (``trial``), or a hand-made one (``trial`` is None).

    ``score`` is of ``step``; only an ``outcome`` of ``done`` is of the whole brief training.
    """

    name: str
    trial: int | None
    outcome: str
    student: str
    width: float
    score: float | None
    step: int | None
    costs: dict[str, float]
    values: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    member: bool = False
    beaten_by: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "beaten_by": list(self.beaten_by)}


def points_of(trials: Sequence[FrozenTrial], base_student: str, base_width: float) -> list[Point]:
    """Return the candidates that were trained, equal ones once; those refused are no candidates."""
    found: dict[str, Point] = {}
    for trial in trials:
        attributes, outcome = trial.user_attrs, outcome_of(trial)
        if outcome not in ("done", "pruned") or COST not in attributes or studies.REUSED in attributes:
            continue
        student = str(trial.params.get("student.name", base_student))
        step, score = last_rung(attributes) or (None, None)
        if outcome == "done":
            step, score = attributes[studies.STEPS], trial.values[0]
        found[attributes[studies.WORK]] = Point(
            f"{student} ({trial.number})", trial.number, outcome, student,
            float(trial.params.get("student.width", base_width)), score, step, attributes[COST], dict(trial.params),
            attributes[studies.FOLDER],
        )  # fmt: skip
    return list(found.values())


def with_members(
    points: Sequence[Point], costs: Sequence[str], direction: Literal["minimize", "maximize"]
) -> list[Point]:
    """Return ``points`` with those marked that no other finished one dominates in score and ``costs``."""
    done = [point for point in points if point.outcome == "done"]
    if not done:
        return list(points)
    free = non_dominated(np.array([_small(point, costs, direction) for point in done]))
    members = {point.trial for point, chosen in zip(done, free, strict=True) if chosen}
    return [_replaced(point, member=point.outcome == "done" and point.trial in members) for point in points]


def beaten(
    reference: Point, points: Sequence[Point], cost: str, direction: Literal["minimize", "maximize"]
) -> Point:
    """Return ``reference`` with the members that dominate it: no worse in score and ``cost``, better in one."""
    own = np.array(_small(reference, (cost,), direction))
    better = []
    for point in points:
        found = np.array(_small(point, (cost,), direction)) if point.member else own
        if (found <= own).all() and (found < own).any():
            better.append(point.trial)
    return _replaced(reference, beaten_by=tuple(trial for trial in better if trial is not None))


def volume(
    points: Sequence[Point],
    costs: Sequence[str],
    limits: dict[str, float],
    direction: Literal["minimize", "maximize"],
) -> dict[str, Any]:
    """Return the hypervolume of the members: score times decades of each cost, below its reference.

    The reference is score 0 (of a loss: the worst finished candidate's) and of each cost its limit, or the
    dearest finished candidate's where it has none.
    """
    done = [point for point in points if point.outcome == "done"]
    if not done:
        return {"hypervolume": 0.0, "reference": {}}
    scores = [float(point.score) for point in done if point.score is not None]
    reference: dict[str, float] = {"score": max(scores) if direction == "minimize" else 0.0}
    reference |= {name: limits.get(name, max(point.costs[name] for point in done)) for name in costs}
    members = np.array([_small(point, costs, direction) for point in done if point.member])
    corner = np.array([reference["score"], *(math.log10(max(reference[name], 1.0)) for name in costs)])
    return {"hypervolume": hypervolume(members, corner), "reference": reference}


def _small(point: Point, costs: Sequence[str], direction: str) -> list[float]:
    assert point.score is not None
    score = point.score if direction == "minimize" else -point.score
    return [score, *(math.log10(max(point.costs[name], 1.0)) for name in costs)]


def _replaced(point: Point, **changes: Any) -> Point:
    return Point(**{**point.__dict__, **changes})
