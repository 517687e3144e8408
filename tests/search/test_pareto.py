"""Pareto sets against definitions written out, volumes against counted cells."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.search.halving import goes_on, rung_steps
from pipeline.search.pareto import best_first, crowding, front_ranks, hypervolume, non_dominated

SIDE = 6
small_sets = st.integers(1, 4).flatmap(
    lambda dims: st.lists(
        st.lists(st.integers(0, SIDE), min_size=dims, max_size=dims), min_size=1, max_size=9
    )
)


def dominates(one: list[int], other: list[int]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


@settings(max_examples=80, deadline=None)
@given(small_sets)
def test_the_set_is_those_that_nobody_dominates(points: list[list[int]]) -> None:
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert non_dominated(np.array(points, dtype=float)).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(small_sets)
def test_a_front_is_the_set_of_what_the_fronts_before_it_left(points: list[list[int]]) -> None:
    ranks = front_ranks(np.array(points, dtype=float)).tolist()
    left, rank = list(range(len(points))), 0
    while left:
        front = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        assert [ranks[i] for i in front] == [rank] * len(front)
        left, rank = [i for i in left if i not in front], rank + 1


@settings(max_examples=60, deadline=None)
@given(small_sets)
def test_the_volume_is_the_number_of_unit_cells_that_are_dominated(points: list[list[int]]) -> None:
    cells = itertools.product(range(SIDE), repeat=len(points[0]))
    expected = sum(any(all(a <= c for a, c in zip(p, cell, strict=True)) for p in points) for cell in cells)
    found = hypervolume(np.array(points, dtype=float), np.full(len(points[0]), float(SIDE)))
    assert found == pytest.approx(expected)


def test_the_volume_is_optunas() -> None:
    private = pytest.importorskip("optuna._hypervolume")
    points = np.random.default_rng(0).random((30, 3))
    reference = np.array([0.9, 1.1, 1.0])
    inside = points[(points < reference).all(axis=1)]
    assert hypervolume(points, reference) == pytest.approx(private.compute_hypervolume(inside, reference))


def test_the_ends_of_a_front_are_the_loneliest() -> None:
    front = np.array([[0.0, 4.0], [1.0, 2.0], [1.5, 1.5], [4.0, 0.0]])
    found = crowding(front)
    assert found[[0, 3]].tolist() == [math.inf, math.inf]
    assert found[1] == pytest.approx(1.5 / 4 + 2.5 / 4)
    assert found[2] == pytest.approx(3.0 / 4 + 2.0 / 4)
    assert best_first(front).tolist() == [0, 3, 2, 1]


@settings(max_examples=60, deadline=None)
@given(small_sets, st.integers(2, 4))
def test_whoever_nobody_dominates_goes_on_and_at_least_its_share_does(
    points: list[list[int]], reduction: int
) -> None:
    array = np.array(points, dtype=float)
    on = [goes_on(i, array, reduction) for i in range(len(points))]
    free = non_dominated(array)
    assert all(on[i] for i in np.flatnonzero(free))
    assert sum(on) == max(int(free.sum()), math.ceil(len(points) / reduction))
    # Nobody goes on before someone of a better front.
    ranks = front_ranks(array)
    worst = max(ranks[i] for i in range(len(points)) if on[i])
    assert all(on[i] for i in range(len(points)) if ranks[i] < worst)


@pytest.mark.parametrize(
    ("steps", "rungs", "reduction", "expected"),
    [(600, 3, 3, [66, 198, 600]), (18, 3, 3, [2, 6, 18]), (100, 1, 3, [100]), (9, 3, 3, [1, 3, 9]),
     (80, 4, 2, [10, 20, 40, 80])],
)  # fmt: skip
def test_rungs_are_shares_of_the_steps_that_one_interval_meets(
    steps: int, rungs: int, reduction: int, expected: list[int]
) -> None:
    found = rung_steps(steps, rungs, reduction)
    assert found == expected
    assert all(step % found[0] == 0 for step in found[:-1])
