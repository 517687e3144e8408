"""Runs of a recipe that are the product of axes: every student by every objective, written once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

SEPARATOR = "-"


def crossed(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's table with ``matrix`` turned into ``runs``, after those it lists.

    A run is named by its choices, joined by ``-`` in the order of the axes. Its changes are theirs together; its
    seeds those of the one choice that names any.

    Raises:
        ValueError: an axis without choices, two choices of one run that disagree, or a name that is taken.
    """
    axes = table.get("matrix") or {}
    if not axes:
        return dict(table)
    if not isinstance(axes, Mapping) or not all(isinstance(axis, Mapping) and axis for axis in axes.values()):
        raise ValueError("matrix: an axis is a table of choices, [matrix.AXIS.CHOICE], one at least")
    runs = dict(table.get("runs") or {})
    for combination in itertools.product(*(axis.items() for axis in axes.values())):
        name = SEPARATOR.join(choice for choice, _ in combination)
        if name in runs:
            raise ValueError(f"matrix: {name} is a run already")
        runs[name] = _joined(name, [dict(run) for _, run in combination])
    return {**table, "runs": runs, "matrix": {}}


def _joined(name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {"set": {}}
    for choice in choices:
        changes = dict(choice.pop("set", {}))
        for key, value in changes.items():
            if joined["set"].setdefault(key, value) != value:
                raise ValueError(f"matrix: two choices of {name} set {key} to different values")
        for key, value in choice.items():
            if joined.setdefault(key, value) != value:
                raise ValueError(f"matrix: two choices of {name} give different {key}")
    return joined
