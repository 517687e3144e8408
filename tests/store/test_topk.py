"""Top-k logits against scipy: what is kept is exact, and the tail says how much probability was dropped."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from pipeline.store import topk


def logits(rows: int, classes: int, seed: int, spread: float = 4.0) -> numpy.ndarray:
    return numpy.random.default_rng(seed).normal(0, spread, (rows, classes)).astype(numpy.float32)


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(2, 60), rows=st.integers(1, 7), seed=st.integers(0, 99), data=st.data())
def test_kept_and_dropped_add_up(classes: int, rows: int, seed: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, classes - 1))
    exact = logits(rows, classes, seed)
    values, indices, tail = topk.encode(exact, top_k)
    assert indices.dtype == numpy.int16
    for row in range(rows):
        largest = sorted(range(classes), key=lambda c: (-exact[row, c], c))[:top_k]
        assert list(indices[row]) == largest
        assert list(values[row]) == [exact[row, c] for c in largest]
        dropped = numpy.delete(exact[row], largest)
        assert tail[row] == pytest.approx(logsumexp(dropped.astype(float)), abs=1e-5)
    probability = softmax(exact.astype(float), axis=1)
    wanted = 1 - numpy.take_along_axis(probability, indices.astype(int), axis=1).sum(axis=1)
    numpy.testing.assert_allclose(topk.lost_mass(values, tail), wanted, atol=1e-6)
    decoded = topk.decode(values, indices, tail, classes)
    found = softmax(decoded.astype(float), axis=1)
    numpy.testing.assert_allclose(
        numpy.take_along_axis(found, indices.astype(int), axis=1),
        numpy.take_along_axis(probability, indices.astype(int), axis=1),
        atol=1e-6,
    )
    numpy.testing.assert_array_equal(numpy.take_along_axis(decoded, indices.astype(int), axis=1), values)


def test_equal_logits_keep_the_lower_class() -> None:
    _, indices, _ = topk.encode(numpy.zeros((1, 9), dtype=numpy.float32), 4)
    assert list(indices[0]) == [0, 1, 2, 3]


def test_a_missing_row_stays_missing() -> None:
    exact = logits(3, 9, 1)
    exact[1, 5] = numpy.nan
    values, indices, tail = topk.encode(exact, 4)
    assert numpy.isnan(values[1]).all()
    assert numpy.isnan(tail[1])
    assert (indices[1] == topk.NO_CLASS).all()
    decoded = topk.decode(values, indices, tail, 9)
    assert numpy.isnan(decoded[1]).all()
    assert numpy.isfinite(decoded[[0, 2]]).all()
    assert numpy.isnan(topk.lost_mass(values, tail)[1])


def test_many_classes_need_a_wider_index() -> None:
    exact = logits(1, 40_000, 2)
    _, indices, _ = topk.encode(exact, 3)
    assert indices.dtype == numpy.int32
    assert indices[0, 0] == exact[0].argmax()
