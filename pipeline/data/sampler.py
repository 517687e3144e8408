"""The order of an epoch: a pure function of (shard sizes, seed, epoch, rank, world).

Shards are shuffled, the row space that they then form is cut into ``world`` equal spans, a rank's span into
blocks of whole shard parts that hold about ``shuffle_rows`` rows, and each block's rows are shuffled. The
first block has a drawn length, so that block borders move from epoch to epoch. After the block shuffle of
MosaicML Streaming's ``py1br`` (2023); rows are read a shard at a time and never one by one.

Where rows are drawn by weight, an entry is a draw: ``shard_sizes`` counts draws, and a row's draws stand together.

Permutations sort keys drawn from PCG64's raw stream, which NumPy keeps for ever (NEP 19); its
``Generator.permutation`` may change between versions, and an order must not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from pipeline.errors import ConfigError

SHARDS, STAGGER, ROWS = 0, 1, 2


@dataclass(frozen=True)
class ShardPart:
    """Rows ``start`` to ``stop`` (exclusive) of ``shard``."""

    shard: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Block:
    """What the shuffle buffer holds at once, and the order in which its rows leave it.

    Attributes:
        parts: shard parts in reading order.
        order: permutation of the rows of ``parts`` laid end to end.
    """

    parts: tuple[ShardPart, ...]
    order: numpy.ndarray

    def shards(self) -> numpy.ndarray:
        """Return the shard of each row, in leaving order."""
        stored: numpy.ndarray = numpy.repeat([p.shard for p in self.parts], [p.rows for p in self.parts])
        return stored.take(self.order)

    def rows(self) -> numpy.ndarray:
        """Return each row's index within its shard, in leaving order."""
        stored: numpy.ndarray = numpy.concatenate([numpy.arange(p.start, p.stop) for p in self.parts])
        return stored.take(self.order)


@dataclass(frozen=True)
class EpochOrder:
    """One rank's epoch. Blocks are shuffled when asked for, so an epoch of any size is cheap to hold."""

    seed: int
    epoch: int
    shuffle: bool
    blocks: tuple[tuple[ShardPart, ...], ...]
    first_row: int

    @property
    def rows(self) -> int:
        """Rows of this rank in this epoch."""
        return sum(part.rows for parts in self.blocks for part in parts)

    def block(self, index: int, owners: numpy.ndarray | None = None) -> Block:
        """Return block ``index`` with the order of its rows.

        ``owners`` says which row each entry is, where rows are drawn several times; see ``spread``.
        """
        parts = self.blocks[index]
        rows = sum(part.rows for part in parts)
        if not self.shuffle:
            return Block(parts, numpy.arange(rows))
        before = sum(part.rows for earlier in self.blocks[:index] for part in earlier)
        # Keyed by the block's place in the whole epoch: two ranks never share a stream.
        key = (self.seed, self.epoch, ROWS, self.first_row + before)
        return Block(parts, permutation(rows, *key) if owners is None else spread(owners, *key))


def epoch_order(
    shard_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    shuffle_rows: int,
    rank: int = 0,
    world: int = 1,
    shuffle: bool = True,
) -> EpochOrder:
    """Return the order in which ``rank`` of ``world`` sees the rows of an epoch.

    Over all ranks each row comes exactly once; ranks differ by one row at most.

    Args:
        shard_sizes: rows of each shard (those selected; 0 is allowed).
        seed: of the run.
        epoch: counts from 0.
        shuffle_rows: rows the shuffle buffer should hold; a block ends with the first shard that reaches it,
            so at least one whole shard is held.
        rank: of this process.
        world: number of processes.
        shuffle: False = rows in stored order (validation).

    Raises:
        ConfigError: an impossible rank, or a buffer of no rows.
    """
    if not 0 <= rank < world:
        raise ConfigError("rank must be below world", expected=f"0 to {world - 1}", got=rank)
    if shuffle_rows < 1:
        raise ConfigError("the shuffle buffer holds no rows", expected="shuffle_rows >= 1", got=shuffle_rows)
    sizes = numpy.asarray(shard_sizes, dtype=numpy.int64)
    shards = permutation(len(sizes), seed, epoch, SHARDS) if shuffle else numpy.arange(len(sizes))
    total = int(sizes.sum())
    begin, end = rank * total // world, (rank + 1) * total // world
    parts = _span(shards, sizes, begin, end)
    stagger = shuffle_rows
    if shuffle:
        stagger = 1 + int(_raw(1, seed, epoch, STAGGER, rank)[0] % numpy.uint64(shuffle_rows))
    return EpochOrder(seed, epoch, shuffle, _blocks(parts, shuffle_rows, stagger), begin)


def permutation(length: int, *key: int) -> numpy.ndarray:
    """Return the permutation of ``length`` that ``key`` names, the same with every version of NumPy."""
    return numpy.argsort(_raw(length, *key), kind="stable")


def spread(owners: numpy.ndarray, *key: int) -> numpy.ndarray:
    """Return an order of entries in which those of one owner come evenly spaced, and owners at random.

    Without repeats it is as random as a permutation. A row that is drawn r times in a buffer of n comes about
    every n / r entries, and not twice in a batch unless it must.

    Args:
        owners: the row of each entry; equal ones stand together.
        key: names the order, as in ``permutation``.
    """
    starts = numpy.flatnonzero(numpy.diff(owners, prepend=-1))
    copies = numpy.diff(starts, append=len(owners))
    number = numpy.arange(len(owners)) - numpy.repeat(starts, copies)
    place = numpy.repeat(uniforms(len(starts), *key), copies)
    return numpy.argsort((number + place) / numpy.repeat(copies, copies), kind="stable")


def uniforms(length: int, *key: int) -> numpy.ndarray:
    """Return ``length`` numbers in [0, 1) that ``key`` names: the upper 53 bits of PCG64's stream."""
    found: numpy.ndarray = (_raw(length, *key) >> numpy.uint64(11)) * 2.0**-53
    return found


def _raw(length: int, *key: int) -> numpy.ndarray:
    stream = numpy.random.PCG64(numpy.random.SeedSequence(key))
    return numpy.atleast_1d(numpy.asarray(stream.random_raw(length), dtype=numpy.uint64))


def _span(shards: numpy.ndarray, sizes: numpy.ndarray, begin: int, end: int) -> list[ShardPart]:
    parts = []
    position = 0
    for shard in shards.tolist():
        size = int(sizes[shard])
        start, stop = max(begin - position, 0), min(end - position, size)
        if start < stop:
            parts.append(ShardPart(shard, start, stop))
        position += size
    return parts


def _blocks(parts: list[ShardPart], shuffle_rows: int, first: int) -> tuple[tuple[ShardPart, ...], ...]:
    blocks: list[tuple[ShardPart, ...]] = []
    current: list[ShardPart] = []
    held, wanted = 0, first
    for part in parts:
        current.append(part)
        held += part.rows
        if held >= wanted:
            blocks.append(tuple(current))
            current, held, wanted = [], 0, shuffle_rows
    if current:
        blocks.append(tuple(current))
    return tuple(blocks)
