"""Runs over their seeds, against figures worked out by hand and SciPy's test of summary statistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from pipeline.evaluation.seed_comparison import VALIDATION_OVERLAP, Measured, markdown, measured, verdicts


def scores() -> dict[str, Any]:
    """Two objectives of one network over two seeds, one run of another; teacher 0.9, floors 0.5 and 0.6."""
    models, rows, summary = [], [], []
    for network, name, values, floor in (
        ("a", "m0-angle", (0.7, 0.74), 0.5),
        ("a", "m0-cosine", (0.8, 0.82), 0.5),
        ("b", "m3-angle", (0.75,), 0.6),
    ):
        for seed, value in enumerate(values, start=1):
            key = f"{name}-{seed}"
            models.append({"key": key, "role": "student", "name": name, "seed": seed, "floor": network})
            rows.append({"model": key, "name": name, "task": "drums", "probe": "knn", "score": value})
        summary.append(
            {
                "task": "drums", "probe": "knn", "role": "student", "name": name,
                "teacher": 0.9, "floor": floor, "share": 0.0, "retention": 0.0,
            }
        )  # fmt: skip
    models.append({"key": "teacher", "role": "teacher", "name": "aisfx", "seed": None, "floor": ""})
    rows.append({"model": "teacher", "name": "aisfx", "task": "drums", "probe": "knn", "score": 0.9})
    return {"models": models, "rows": rows, "summary": summary}


def found() -> dict[tuple[str, str], Measured]:
    overlaps = {"m0-angle-1": 0.2, "m0-angle-2": 0.3, "teacher": 1.0, "gone": 0.9}
    return {(row.run, row.figure): row for row in measured(scores(), overlaps)}


def test_shares_and_retention_are_of_each_seed() -> None:
    share = found()["m0-angle", "share of the gap, drums knn"]
    assert share.values == pytest.approx((0.5, 0.6))
    assert share.mean == pytest.approx(0.55)
    assert share.spread == pytest.approx(0.1 / math.sqrt(2))
    assert found()["m3-angle", "retention, drums knn"].values == pytest.approx((0.75 / 0.9,))
    assert math.isnan(found()["m3-angle", "retention, drums knn"].spread)


def test_only_students_with_an_overlap_have_one() -> None:
    rows = [row for row in found().values() if row.figure == VALIDATION_OVERLAP]
    assert [(row.run, row.values) for row in rows] == [("m0-angle", (0.2, 0.3))]


def test_the_winner_and_whether_it_is_beyond_the_spread() -> None:
    judged = {one.figure: one for one in verdicts(list(found().values()))}
    one = judged["share of the gap, drums knn"]
    assert (one.network, one.best, one.second) == ("a", "m0-cosine", "m0-angle")
    assert one.margin == pytest.approx(0.775 - 0.55)
    # Standard deviations 0.1 / sqrt 2 and 0.05 / sqrt 2.
    assert one.spread == pytest.approx(math.sqrt((0.005 + 0.00125) / 2))
    want = stats.ttest_ind_from_stats(0.775, 0.05 / 2**0.5, 2, 0.55, 0.1 / 2**0.5, 2, equal_var=False)
    assert one.p_value == pytest.approx(want.pvalue)
    assert one.is_beyond_spread
    # A network with one run, and one whose runs have one seed, have no winner.
    assert {judgement.network for judgement in judged.values()} == {"a"}


def test_a_margin_within_the_spread_is_said_to_be() -> None:
    rows = [Measured("a", "x", "f", (0.5, 0.7)), Measured("a", "y", "f", (0.55, 0.63))]
    assert not verdicts(rows)[0].is_beyond_spread
    assert "| f | x | y | 1.0 | 10.8 | no |" in markdown(rows, "t")


def test_seeds_without_any_spread_have_no_test() -> None:
    rows = [Measured("a", "x", "f", (0.5, 0.5)), Measured("a", "y", "f", (0.4, 0.4))]
    (one,) = verdicts(rows)
    assert math.isnan(one.p_value)
    assert one.is_beyond_spread
