"""One process of stage 1. Three threads overlap: rendering runs ahead, the teacher computes, shards are written.

The pool sends shard numbers, at most two ahead; the worker answers with messages. Every queue is bounded, so
memory is too.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Literal, Protocol

import torch

from pipeline.embedding.array_makers import build_makers
from pipeline.embedding.shard import (
    EmbedWork,
    RenderedBatch,
    ShardArrays,
    ShardRenderer,
    rates_of,
    wanted_specs,
)
from pipeline.errors import OssicleError
from pipeline.store.schema import ArraySpec
from pipeline.store.writer import StoreWriter

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Message:
    """What a worker tells the pool.

    ``ready``: it can take shards. ``rows``: so many more rows of ``shard`` were computed. ``done``: ``shard``
    is committed. ``failed``: it cannot go on; ``error`` (one of this project's) or ``trace`` says why.
    """

    kind: Literal["ready", "rows", "done", "failed"]
    shard: int = -1
    rows: int = 0
    error: OssicleError | None = None
    trace: str = ""


def main(work: EmbedWork, pipe: Connection) -> None:
    """Embed the shards that arrive on ``pipe`` until None does."""
    # Ctrl-C reaches the whole process group; the pool alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        with StoreWriter.open(work.store) as writer:
            ShardWorker(work, writer, pipe).run()
    except BaseException as error:
        pipe.send(failed(error))
        raise SystemExit(1) from None


def failed(error: BaseException) -> Message:
    """Return the message that ``error`` ended the work."""
    known = error if isinstance(error, OssicleError) else None
    return Message("failed", error=known, trace="".join(traceback.format_exception(error)))


def _end_with_parent() -> None:
    # A pool that was killed cannot say so; without this its workers would go on.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class Channel(Protocol):
    """Where a worker gets its shards and tells what it does: one end of a pipe, or queues of that shape."""

    def recv(self) -> int | None:
        """Return the next shard, or None after the last."""

    def send(self, message: Message) -> None:
        """Tell what was done."""


class ShardWorker:
    """The three threads of one process.

    Args:
        work: what is to be done.
        writer: the open store.
        pipe: gives shards until None, and is told of all that is done.
        end: called after a thread failed and said so; default the process ends, for the other threads may wait
            on a queue for ever.
    """

    def __init__(
        self,
        work: EmbedWork,
        writer: StoreWriter,
        pipe: Channel,
        end: Callable[[], None] | None = None,
    ) -> None:
        self.work, self.writer, self.pipe = work, writer, pipe
        self.end = end or functools.partial(os._exit, 1)
        wanted = set(work.digests)
        needed = {position for position, made in enumerate(work.makers) if wanted & set(made)}
        self.makers = build_makers(work.embed, work.cache, needed)
        self.renderer = ShardRenderer(work, writer)
        self.rendered: queue.Queue[tuple[RenderedBatch, list[ArraySpec]] | None] = queue.Queue(BATCHES_AHEAD)
        self.computed: queue.Queue[ShardArrays | None] = queue.Queue(1)
        self._sending = threading.Lock()

    def run(self) -> None:
        """Embed the shards that arrive; returns when the last is committed."""
        self._send(Message("ready"))
        renderer, writer = self._thread(self._render), self._thread(self._write)
        arrays: ShardArrays | None = None
        while (item := self.rendered.get()) is not None:
            batch, specs = item
            if arrays is None:
                arrays = ShardArrays(batch.shard, specs, self.writer, self.makers)
            arrays.add(batch)
            self._send(Message("rows", batch.shard, batch.rows))
            if batch.last:
                self.computed.put(arrays)
                arrays = None
        self.computed.put(None)
        renderer.join()
        writer.join()

    def _render(self) -> None:
        while (shard := self.pipe.recv()) is not None:
            specs = wanted_specs(self.work, self.writer, shard)
            if not specs:
                self._send(Message("done", shard))
                continue
            for batch in self.renderer.batches(shard, rates_of(specs, self.makers)):
                self.rendered.put((batch, specs))
        self.rendered.put(None)

    def _write(self) -> None:
        while (made := self.computed.get()) is not None:
            rejects = [made.rejects[row] for row in sorted(made.rejects)]
            self.writer.write_shard(made.shard, made.arrays, rejects)
            self._send(Message("done", made.shard))

    def _thread(self, target: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                target()
            except BaseException as error:
                self._send(failed(error))
                self.end()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _send(self, message: Message) -> None:
        with self._sending:
            self.pipe.send(message)
