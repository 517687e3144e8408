"""The background thread keeps its bound, its order and its errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from pipeline.data.read_ahead import ReadAhead


def test_order_and_end() -> None:
    with ReadAhead((n for n in range(50)), 3, "test-read-ahead") as items:
        assert list(items) == list(range(50))


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_made_than_allowed(depth: int) -> None:
    made = 0

    def source() -> Generator[int]:
        nonlocal made
        for n in range(20):
            made += 1
            yield n

    with ReadAhead(source(), depth, "test-read-ahead") as items:
        for taken, _ in enumerate(items, 1):
            time.sleep(0.005)
            assert made <= taken + depth
    assert made == 20


def test_an_error_comes_after_the_items_before_it() -> None:
    def source() -> Generator[int]:
        yield 1
        raise KeyError("lost")

    taken = []
    with ReadAhead(source(), 4, "test-read-ahead") as items, pytest.raises(KeyError, match="lost"):
        for item in items:
            taken.append(item)  # noqa: PERF402
    assert taken == [1]


def test_leaving_early_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Generator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with ReadAhead(source(), 2, "test-read-ahead") as items:
        next(items)
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "test-read-ahead"]
