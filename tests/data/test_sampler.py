"""Laws of the epoch order."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.sampler import EpochOrder, epoch_order, permutation
from pipeline.errors import ConfigError

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def seen(order: EpochOrder) -> list[tuple[int, int]]:
    pairs = []
    for index in range(len(order.blocks)):
        block = order.block(index)
        pairs += list(zip(block.shards().tolist(), block.rows().tolist(), strict=True))
    return pairs


@settings(max_examples=150, deadline=None)
@given(
    sizes=SIZES,
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
    world=st.integers(1, 7),
    shuffle_rows=st.integers(1, 200),
    shuffle=st.booleans(),
)
def test_each_row_comes_once_over_all_ranks(
    sizes: list[int], seed: int, epoch: int, world: int, shuffle_rows: int, shuffle: bool
) -> None:
    ranks = [
        seen(
            epoch_order(
                sizes,
                seed=seed,
                epoch=epoch,
                shuffle_rows=shuffle_rows,
                rank=rank,
                world=world,
                shuffle=shuffle,
            )
        )
        for rank in range(world)
    ]
    together = [pair for rank in ranks for pair in rank]
    assert sorted(together) == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    lengths = [len(rank) for rank in ranks]
    assert max(lengths) - min(lengths) <= 1
    if not shuffle and world == 1:
        assert together == sorted(together)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, shuffle_rows=st.integers(1, 200), epoch=st.integers(0, 9))
def test_a_buffer_holds_what_it_should(sizes: list[int], shuffle_rows: int, epoch: int) -> None:
    order = epoch_order(sizes, seed=1, epoch=epoch, shuffle_rows=shuffle_rows)
    for index, parts in enumerate(order.blocks):
        rows = [part.rows for part in parts]
        assert sum(rows[:-1]) < shuffle_rows
        if 0 < index < len(order.blocks) - 1:
            assert sum(rows) >= shuffle_rows


def test_it_is_a_pure_function_of_its_arguments() -> None:
    sizes = [64] * 64
    base = {"seed": 3, "epoch": 4, "shuffle_rows": 1024, "rank": 0, "world": 2}
    assert seen(epoch_order(sizes, **base)) == seen(epoch_order(sizes, **base))
    for change in ({"seed": 4}, {"epoch": 5}, {"rank": 1}, {"shuffle_rows": 2048}):
        assert seen(epoch_order(sizes, **{**base, **change})) != seen(epoch_order(sizes, **base))


def test_the_order_stays_what_it_was() -> None:
    """Pinned: resuming a run under another version of NumPy must go on in the same order."""
    stream = numpy.random.PCG64(numpy.random.SeedSequence([7, 1]))
    keys = [int(stream.random_raw()) for _ in range(8)]
    by_hand = sorted(range(8), key=lambda place: keys[place])
    assert permutation(8, 7, 1).tolist() == by_hand == [1, 3, 2, 7, 4, 5, 0, 6]


def test_it_is_nearly_as_random_as_a_full_shuffle() -> None:
    """64 shards of 128 rows through a buffer of an eighth: where rows end up, and what shares a batch."""
    sizes, batch = [128] * 64, 64
    total = sum(sizes)
    stored = numpy.arange(total)
    same_shard, correlation, mean_place = [], [], numpy.zeros(total)
    epochs = 40
    for epoch in range(epochs):
        order = epoch_order(sizes, seed=11, epoch=epoch, shuffle_rows=total // 8)
        rows = numpy.array([shard * 128 + row for shard, row in seen(order)])
        correlation.append(numpy.corrcoef(stored, rows)[0, 1])
        mean_place[rows] += stored / epochs
        shards = (rows // 128).reshape(-1, batch)
        same_shard.append(
            numpy.mean([(a[:, None] == a[None]).sum() - batch for a in shards]) / (batch * (batch - 1))
        )
    # Stored order leaves no trace: a permutation's correlation has deviation 1/sqrt(n) for single rows; whole
    # shards move together, so 1/sqrt(64) here.
    assert abs(numpy.mean(correlation)) < 4 / numpy.sqrt(64 * epochs)
    # No row prefers a place in the epoch: the mean of `epochs` uniform places.
    deviation = total / numpy.sqrt(12 * epochs)
    assert abs(mean_place - total / 2).max() < 6 * deviation
    # Two rows of a batch share a shard no more often than rows of one buffer (8 shards and more) would.
    assert numpy.mean(same_shard) < 1.2 * 127 / (8 * 128 - 1)


def test_block_borders_move() -> None:
    sizes = [16] * 32
    first = {len(epoch_order(sizes, seed=0, epoch=epoch, shuffle_rows=128).blocks[0]) for epoch in range(40)}
    assert first == set(range(1, 9))


@pytest.mark.parametrize("wrong", [{"rank": 2, "world": 2}, {"rank": -1}, {"shuffle_rows": 0}])
def test_impossible_arguments(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        epoch_order([4], **{"seed": 0, "epoch": 0, "shuffle_rows": 8, **wrong})
