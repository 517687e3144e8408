"""Runs of one network side by side, each over its seeds: which is best, by how much, and is that beyond the spread?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pipeline.evaluation.scoring import STUDENT

VALIDATION_OVERLAP = "neighbour overlap, validation rows"
# Rounding alone spreads equal values by less.
_EQUAL = 1e-12
_SHARE, _RETENTION = "share of the gap", "retention"


@dataclass(frozen=True)
class Measured:
    """One figure of one run, a value a seed.

    Args:
        network: the run's ``Model.floor``: equal for runs of one network.
        run: its name.
        figure: what is measured; higher is better.
        values: one a seed.
    """

    network: str
    run: str
    figure: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Sample standard deviation over seeds; NaN of one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Verdict:
    """The best run of a network under one figure, beside the next.

    Args:
        best: the run with the highest mean, and ``second`` the next.
        margin: difference of their means.
        spread: root mean square of their two standard deviations.
        p_value: two-sided, of Welch's t-test (Biometrika, 1947) between their seeds; the best of several is chosen
            by the same seeds, so that it flatters.
    """

    network: str
    figure: str
    best: str
    second: str
    margin: float
    spread: float
    p_value: float

    @property
    def is_beyond_spread(self) -> bool:
        """Whether the margin is larger than the spread over seeds."""
        return self.margin > self.spread


def measured(scores: Mapping[str, Any], overlaps: Mapping[str, float]) -> list[Measured]:
    """Return every figure of every student run over its seeds: overlap, then share and retention a task and probe.

    Args:
        scores: ``scores.json`` of an evaluation.
        overlaps: neighbour overlap with the teacher on the store's validation rows, by model key; missing ones are
            left out.
    """
    models = {model["key"]: model for model in scores["models"] if model["role"] == STUDENT}
    found = _grouped(
        (models[key]["floor"], models[key]["name"], VALIDATION_OVERLAP, value)
        for key, value in overlaps.items()
        if key in models
    )
    summary = {
        (row["task"], row["probe"], row["name"]): row for row in scores["summary"] if row["role"] == STUDENT
    }
    shares, retentions = [], []
    for row in scores["rows"]:
        beside = summary.get((row["task"], row["probe"], row["name"]))
        if row["model"] not in models or beside is None:
            continue
        network, task = models[row["model"]]["floor"], f"{row['task']} {row['probe']}"
        teacher, floor = beside["teacher"], beside["floor"]
        if beside["share"] is not None:
            share = (row["score"] - floor) / (teacher - floor)
            shares.append((network, row["name"], f"{_SHARE}, {task}", share))
        if beside["retention"] is not None:
            retentions.append((network, row["name"], f"{_RETENTION}, {task}", row["score"] / teacher))
    return found + _grouped(shares) + _grouped(retentions)


def verdicts(rows: Sequence[Measured]) -> list[Verdict]:
    """Return the winner of each network and figure that two runs of two seeds or more share."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for row in rows:
        if len(row.values) > 1:
            groups.setdefault((row.network, row.figure), []).append(row)
    found = []
    for (network, figure), group in groups.items():
        if len(group) < 2:
            continue
        best, second = sorted(group, key=lambda row: -row.mean)[:2]
        spread = math.sqrt((best.spread**2 + second.spread**2) / 2)
        p_value = math.nan
        if spread > _EQUAL:
            sides = (side for one in (best, second) for side in (one.mean, one.spread, len(one.values)))
            p_value = float(stats.ttest_ind_from_stats(*sides, equal_var=False).pvalue)
        found.append(Verdict(network, figure, best.run, second.run, best.mean - second.mean, spread, p_value))
    return found


def markdown(rows: Sequence[Measured], title: str) -> str:
    """Return a table a network, runs by figures in % (mean ± standard deviation), and its verdicts below."""
    parts = [f"# {title}: runs over their seeds", ""]
    judged = verdicts(rows)
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        figures = list(dict.fromkeys(row.figure for row in own))
        cells = {(row.run, row.figure): _cell(row) for row in own}
        parts += [f"| run | {' | '.join(figures)} |", f"|---|{'---|' * len(figures)}"]
        for run in dict.fromkeys(row.run for row in own):
            parts.append(f"| {run} | {' | '.join(cells.get((run, figure), '-') for figure in figures)} |")
        parts += [
            "",
            "| figure | best | next | margin | spread | beyond it | Welch's p |",
            "|---|---|---|---|---|---|---|",
        ]
        parts += [
            f"| {one.figure} | {one.best} | {one.second} | {100 * one.margin:.1f} | {100 * one.spread:.1f} | "
            f"{'yes' if one.is_beyond_spread else 'no'} | {one.p_value:.2g} |"
            for one in judged
            if one.network == network
        ]
        parts.append("")
    return "\n".join(parts)


def _grouped(values: Iterable[tuple[str, str, str, float]]) -> list[Measured]:
    groups: dict[tuple[str, str, str], list[float]] = {}
    for network, run, figure, value in values:
        groups.setdefault((network, run, figure), []).append(value)
    return [Measured(*key, tuple(found)) for key, found in groups.items()]


def _cell(row: Measured) -> str:
    spread = "" if math.isnan(row.spread) else f" ± {100 * row.spread:.1f}"
    return f"{100 * row.mean:.1f}{spread}"
