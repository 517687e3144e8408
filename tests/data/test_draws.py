"""How often rows are drawn, and in which order their copies come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.data.draws import PIECE, Draws
from pipeline.data.sampler import spread
from pipeline.errors import ConfigError

WEIGHTS = st.lists(st.floats(0.01, 10) | st.just(0.0), min_size=2, max_size=30).filter(any)


@settings(max_examples=80)
@given(weights=WEIGHTS, rows=st.integers(1, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 99))
def test_an_epoch_is_full_and_nothing_is_drawn_that_may_not_be(
    weights: list[float], rows: int, seed: int, epoch: int
) -> None:
    given_weights = np.array(weights)
    positive = int((given_weights > 0).sum())
    for kind in ("independent", "stratified", "distinct"):
        wanted = min(rows, positive) if kind == "distinct" else rows
        counts = Draws(given_weights, wanted, kind).counts(given_weights, seed, epoch)
        assert counts.sum() == wanted
        assert counts.min() >= 0
        assert (counts[given_weights == 0] == 0).all()
        if kind == "distinct":
            assert counts.max() == 1
        if kind == "stratified":
            assert (abs(counts - wanted * given_weights / given_weights.sum()) < 1 + 1e-6).all()
        again = Draws(given_weights, wanted, kind).counts(given_weights, seed, epoch)
        np.testing.assert_array_equal(counts, again)


def test_equal_weights_stratified_are_a_plain_pass() -> None:
    for weight in (1.0, 1 / 3, 1e-7):
        weights = np.full(3_001, weight)
        assert set(Draws(weights, 3_001, "stratified").counts(weights, 3, 4)) == {1}


@pytest.mark.parametrize("kind", ["independent", "stratified"])
def test_counts_follow_the_weights(kind: str) -> None:
    weights = np.array([1.0, 5.0, 0.0, 2.0, 0.5])
    rows, epochs = 40, 2_000
    draws = Draws(weights, rows, kind)  # type: ignore[arg-type]
    total = sum(draws.counts(weights, 7, epoch) for epoch in range(epochs))
    kept = weights > 0
    expected = rows * epochs * weights[kept] / weights.sum()
    # For stratified draws the test is only more forgiving: their counts vary less.
    assert stats.chisquare(total[kept], expected).pvalue > 1e-4


def test_distinct_draws_by_weight() -> None:
    """The first of two is drawn by weight, the second by weight among the rest: exact by enumeration."""
    weights = np.array([1.0, 2.0, 5.0])
    total = weights.sum()
    expected = np.zeros(3)
    for first in range(3):
        for second in set(range(3)) - {first}:
            chance = weights[first] / total * weights[second] / (total - weights[first])
            expected[[first, second]] += chance
    epochs = 4_000
    drawn = sum(Draws(weights, 2, "distinct").counts(weights, 5, epoch) for epoch in range(epochs))
    assert abs(drawn / epochs - expected).max() < 4 * np.sqrt(0.25 / epochs)


def test_epochs_differ_and_pieces_do_not_repeat() -> None:
    weights = np.ones(1_000)
    one, two = (Draws(weights, 500).counts(weights, 0, epoch) for epoch in (0, 1))
    assert not np.array_equal(one, two)
    rows = PIECE + PIECE // 2
    whole = Draws(weights, rows).counts(weights, 0, 0)
    first = Draws(weights, PIECE).counts(weights, 0, 0)
    rest = whole - first
    assert rest.min() >= 0
    assert abs(np.corrcoef(first, rest)[0, 1]) < 0.2


@settings(max_examples=80)
@given(copies=st.lists(st.integers(1, 9), min_size=1, max_size=60), key=st.integers(0, 2**30))
def test_copies_leave_evenly_spaced(copies: list[int], key: int) -> None:
    owners = np.repeat(np.arange(len(copies)) * 3 + 2, copies)
    order = spread(owners, key)
    assert sorted(order.tolist()) == list(range(len(owners)))
    leaving = owners[order]
    if len(copies) > 1 and max(copies) * 2 <= len(owners) and len(set(copies)) == 1:
        # Rows with equal counts come round by round, each once a round.
        rounds = leaving.reshape(copies[0], -1)
        assert all(set(one) == set(rounds[0]) for one in rounds)


def test_a_batch_holds_no_row_twice_where_it_need_not() -> None:
    generator = np.random.default_rng(0)
    copies = np.where(np.arange(2_000) % 40 == 0, 12, 1)
    owners = np.repeat(np.arange(2_000), copies)
    for key in range(20):
        leaving = owners[spread(owners, key)]
        batches = leaving[: len(leaving) // 64 * 64].reshape(-1, 64)
        twice = sum(64 - len(set(batch)) for batch in batches)
        plain = generator.permutation(owners)[: len(leaving) // 64 * 64].reshape(-1, 64)
        assert sum(64 - len(set(batch)) for batch in plain) > 20
        assert twice == 0


def test_without_copies_it_is_random() -> None:
    owners = np.arange(400)
    places = np.array([spread(owners, key) for key in range(300)])
    assert stats.kstest(places[:, 0] / 400, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(places[:, 0], places[:, 1])[0, 1]) < 0.25


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="not below 0"):
        Draws(np.array([1.0, -1.0]), 3)
    with pytest.raises(ConfigError, match="not all 0"):
        Draws(np.zeros(3), 3)
    with pytest.raises(ConfigError, match="at most 2"):
        Draws(np.array([1.0, 1.0, 0.0]), 3, "distinct")
