"""Shuffled batches from a store: whole shards are decoded ahead in the background, batches are gathered."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor

from pipeline.config import digest
from pipeline.data.arena import Arena, Buffers, held_dtype
from pipeline.data.draws import Draws
from pipeline.data.epoch_rows import EpochRows
from pipeline.data.read_ahead import ReadAhead
from pipeline.data.sampler import epoch_order
from pipeline.data.selection import select_rows
from pipeline.data.target_rows import TargetRows
from pipeline.errors import ConfigError, DigestMismatchError, TrainingError
from pipeline.store.reader import StoreReader

KINDS = ("spectrogram", "embedding")
CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Batch:
    """Rows of a store.

    Attributes:
        index: row numbers in the store of what the student sees, for ``reader.rows``.
        spectrogram: log-mel as stored, float16; None if not asked for.
        embedding: the teacher's, float32; None if not asked for.
        targets: row numbers of the embeddings, where they are of other rows; None = ``index``.
    """

    index: Int64[Tensor, " batch"]
    spectrogram: Float16[Tensor, "batch mels frames"] | None
    embedding: Float[Tensor, "batch dim"] | None
    targets: Int64[Tensor, " batch"] | None = None

    @property
    def target_index(self) -> Int64[Tensor, " batch"]:
        """The rows that ``embedding`` is of: what an objective that looks rows up is to be given."""
        return self.index if self.targets is None else self.targets

    def __len__(self) -> int:
        return len(self.index)


class ShardLoader:
    """Iterates over batches, epoch after epoch, without end; ``one_epoch`` ends.

    One thread decodes shards ahead and another gathers batches; nothing forks (zarr's event loop would not
    survive it). Iterating again goes on where the last batch was handed out, and ``state_dict`` says where
    that is: a batch counts as used once it was handed out, whatever was read ahead.

    The order is a pure function of the arguments (see ``sampler``); caching, read-ahead and resuming do not
    change it.

    Args:
        reader: the store, with its arrays chosen.
        batch_size: rows a batch.
        seed: of the order.
        shuffle_rows: rows the shuffle buffer holds; two such buffers live at once unless cached.
        split: ``train``, ``validation`` or None for every usable row.
        arrays: ``spectrogram``, ``embedding`` or both.
        rank: of this process.
        world: number of processes.
        shuffle: False = stored order.
        drop_last: True = an epoch's last short batch is dropped (other rows each epoch), and every rank gives
            the same number of batches. False = it is given, and ranks may differ by one batch.
        cache_bytes: selected rows that fit into this are kept decoded, and later epochs read nothing.
        read_ahead: batches gathered ahead.
        mask: further filter, one boolean a row of the store.
        draws: rows are drawn by weight, several times or not at all an epoch; None = each once.
        targets: embeddings come from other rows than the spectrograms (an augmented view's clean window).

    Raises:
        TrainingError: no usable row, or fewer than one batch with ``drop_last``.
    """

    def __init__(
        self,
        reader: StoreReader,
        batch_size: int,
        seed: int = 0,
        shuffle_rows: int = 8192,
        split: str | None = "train",
        arrays: Sequence[str] = KINDS,
        rank: int = 0,
        world: int = 1,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        cache_bytes: int = CACHE_BYTES,
        read_ahead: int = 4,
        mask: numpy.ndarray | None = None,
        draws: Draws | None = None,
        targets: TargetRows | None = None,
    ) -> None:
        if batch_size < 1 or read_ahead < 1:
            raise ConfigError("batch_size and read_ahead are at least 1", got=(batch_size, read_ahead))
        if not arrays or not set(arrays) <= set(KINDS):
            raise ConfigError("unknown arrays", expected=KINDS, got=tuple(arrays))
        self.reader, self.batch_size, self.seed = reader, batch_size, seed
        self.shuffle_rows, self.split, self.arrays = shuffle_rows, split, tuple(arrays)
        self.rank, self.world = rank, world
        self.shuffle, self.drop_last, self.read_ahead = shuffle, drop_last, read_ahead
        if draws is not None:
            mask = draws.weights > 0 if mask is None else mask & (draws.weights > 0)
        self.selection = select_rows(reader, split, mask)
        self.draws, self.targets = draws, targets
        # Embeddings of other rows are not read beside the spectrograms.
        self._read = tuple(kind for kind in self.arrays if targets is None or kind != "embedding")
        self._weights = None if draws is None else draws.weights[self.selection.index(reader)]
        self._digest: str | None = None
        self.epoch, self.batch = 0, 0
        self._rows(0)
        if self.batches_per_epoch == 0:
            raise TrainingError(
                "fewer rows than one batch",
                expected=f"at least {batch_size * world} rows, or drop_last=False",
                got=f"{self.rows_per_epoch} rows over {world} processes",
                run="lower train.batch_size, or embed more audio",
            )
        row_bytes = sum(reader.spec(kind).row_bytes for kind in self._read)
        self.cached = self.selection.total * row_bytes <= cache_bytes
        self._cache: Arena | None = None
        self._buffers = Buffers()
        self._outputs = {kind: Buffers(read_ahead + 4) for kind in self._read}

    @property
    def rows(self) -> int:
        """Selected rows, over all ranks."""
        return self.selection.total

    @property
    def rows_per_epoch(self) -> int:
        """Rows that all ranks together give each epoch: all, or as many as are drawn."""
        return self.selection.total if self.draws is None else self.draws.rows

    @property
    def batches_per_epoch(self) -> int:
        """Batches this rank gives each epoch."""
        total, world = self.rows_per_epoch, self.world
        if self.drop_last:
            return total // world // self.batch_size
        mine = (self.rank + 1) * total // world - self.rank * total // world
        return -(-mine // self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return where the next batch comes from, as plain JSON values."""
        return {"epoch": self.epoch, "batch": self.batch, "order": self._order_digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where ``state`` was taken; takes effect at the next ``iter``.

        Raises:
            DigestMismatchError: the order there was another (rows, seed, batch size, buffer or world).
        """
        if state["order"] != self._order_digest():
            raise DigestMismatchError(
                "the loader's state belongs to another order of the rows",
                expected=self._order_digest(),
                got=state["order"],
                run="resume with the store, seed, batch size, shuffle_rows and world of the run",
            )
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])

    def __iter__(self) -> Iterator[Batch]:
        with ReadAhead(self._gathered(self.epoch, self.batch), self.read_ahead, "ossicle-gather") as batches:
            for batch, self.epoch, self.batch in batches:
                yield batch

    def one_epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Iterate over ``epoch`` alone; ``state_dict`` is not touched. For validation."""
        with ReadAhead(self._gathered(epoch, 0, 1), self.read_ahead, "ossicle-gather") as batches:
            for batch, _, _ in batches:
                yield batch

    def _gathered(
        self, epoch: int, batch: int, epochs: int | None = None
    ) -> Generator[tuple[Batch, int, int]]:
        """Give each batch with the epoch and the batch number that come after it."""
        number = batch
        waiting: list[tuple[Arena, numpy.ndarray, numpy.ndarray]] = []
        with ReadAhead(self._decoded(epoch, batch * self.batch_size, epochs), 1, "ossicle-decode") as blocks:
            for arena, positions, index, epoch_ends in blocks:
                waiting.append((arena, positions, index))
                for pieces in _batches(waiting, self.batch_size, epoch_ends and not self.drop_last):
                    if number == self.batches_per_epoch:
                        self._release([piece[0] for piece in pieces], waiting)
                        break
                    number += 1
                    after = (epoch + 1, 0) if number == self.batches_per_epoch else (epoch, number)
                    made = self._gather(pieces)
                    self._release([piece[0] for piece in pieces], waiting)
                    yield (made, *after)
                if epoch_ends:
                    self._release([piece[0] for piece in waiting], [])
                    waiting.clear()
                    epoch, number = epoch + 1, 0

    def _decoded(
        self, epoch: int, skip: int, epochs: int | None
    ) -> Generator[tuple[Arena, numpy.ndarray, numpy.ndarray, bool]]:
        """Give each block's arena, where its rows lie there and which they are, and whether its epoch ends."""
        final = None if epochs is None else epoch + epochs
        while final is None or epoch < final:
            rows = self._rows(epoch)
            for block in range(rows.blocks):
                length = rows.length(block)
                if skip < length:
                    shards, within = (values[skip:] for values in rows.leaving(block))
                    arena = self._arena(rows, block)
                    index = rows.first_rows[shards] + within
                    yield arena, arena.positions(shards, within), index, block == rows.blocks - 1
                skip = max(0, skip - length)
            epoch += 1

    def _gather(self, pieces: list[tuple[Arena, numpy.ndarray, numpy.ndarray]]) -> Batch:
        index = numpy.concatenate([rows for _, _, rows in pieces])
        values: dict[str, Tensor | None] = dict.fromkeys(KINDS)
        for kind in self._read:
            shape = (len(index), *self.reader.spec(kind).row_shape)
            out = self._outputs[kind].tensor(shape, held_dtype(self.reader, kind))
            begin = 0
            for arena, positions, _ in pieces:
                arena.gather(kind, positions, out[begin : begin + len(positions)])
                begin += len(positions)
            values[kind] = out
        if self.targets is None:
            return Batch(torch.from_numpy(index), values["spectrogram"], values["embedding"])
        targets, embedding = self.targets.of(index)
        return Batch(
            torch.from_numpy(index), values["spectrogram"],
            embedding if "embedding" in self.arrays else None, targets,
        )  # fmt: skip

    def _release(self, used: list[Arena], waiting: list[tuple[Arena, numpy.ndarray, numpy.ndarray]]) -> None:
        """Give back the memory of arenas that no row waits in."""
        for arena in used:
            if arena is not self._cache and all(arena is not held for held, _, _ in waiting):
                arena.release()

    def _rows(self, epoch: int) -> EpochRows:
        counted = None
        sizes = self.selection.sizes
        if self.draws is not None and self._weights is not None:
            drawn = self.draws.counts(self._weights, self.seed, epoch)
            counted = numpy.split(drawn, numpy.cumsum(sizes)[:-1])
            sizes = [int(counts.sum()) for counts in counted]
        order = epoch_order(
            sizes,
            seed=self.seed,
            epoch=epoch,
            shuffle_rows=self.shuffle_rows,
            rank=self.rank,
            world=self.world,
            shuffle=self.shuffle,
        )
        return EpochRows(order, self.selection, counted, self.reader)

    def _order_digest(self) -> str:
        if self._digest is not None:
            return self._digest
        content: dict[str, Any] = {
            "rows": self.reader.meta.rows_digest,
            "selected": [rows.tolist() for rows in self.selection.rows],
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shuffle_rows": self.shuffle_rows if self.shuffle else None,
            "drop_last": self.drop_last,
            "rank": self.rank,
            "world": self.world,
        }
        if self.draws is not None and self._weights is not None:
            content["draws"] = self.draws.digest(self._weights)
        self._digest = digest(content)
        return self._digest

    def _arena(self, rows: EpochRows, block: int) -> Arena:
        """Return an arena that holds the rows of ``block``: the cache of all rows, or one for them alone."""
        held = rows.held(block)
        if not self.cached:
            arena = Arena(self.reader, self._read, held, self._buffers)
        else:
            if self._cache is None:
                whole = {shard: chosen for shard, chosen in enumerate(self.selection.rows) if len(chosen)}
                self._cache = Arena(self.reader, self._read, whole)
            arena = self._cache
        arena.fill(list(held))
        return arena


def _batches(
    waiting: list[tuple[Arena, numpy.ndarray, numpy.ndarray]], size: int, short: bool
) -> Iterator[list[tuple[Arena, numpy.ndarray, numpy.ndarray]]]:
    """Take full batches off ``waiting`` as pieces of arenas; the short rest too, if ``short``."""
    held = sum(len(positions) for _, positions, _ in waiting)
    while held >= size or (short and held):
        pieces = []
        wanted = min(size, held)
        held -= wanted
        while wanted:
            arena, positions, index = waiting.pop(0)
            pieces.append((arena, positions[:wanted], index[:wanted]))
            if len(positions) > wanted:
                waiting.insert(0, (arena, positions[wanted:], index[wanted:]))
            wanted -= len(pieces[-1][1])
        yield pieces
