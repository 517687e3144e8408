"""One process of stage 1. Three threads overlap: rendering runs ahead, the teacher computes, shards are written.

The pool sends shard numbers, at most two ahead; the worker answers with messages. Every queue is bounded, so
memory is too.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Literal

import torch

from pipeline.embedding.shard import EmbedWork, RenderedBatch, ShardArrays, ShardRenderer, wanted_specs
from pipeline.errors import OssicleError
from pipeline.frontends.log_mel import LogMel
from pipeline.store.schema import ArraySpec
from pipeline.store.writer import StoreWriter
from pipeline.teachers.registry import build_teacher

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
            _Worker(work, writer, pipe).run()
    except BaseException as error:
        pipe.send(_failed(error))
        raise SystemExit(1) from None


def _failed(error: BaseException) -> Message:
    known = error if isinstance(error, OssicleError) else None
    return Message("failed", error=known, trace="".join(traceback.format_exception(error)))


def _end_with_parent() -> None:
    # A pool that was killed cannot say so; without this its workers would go on.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class _Worker:
    def __init__(self, work: EmbedWork, writer: StoreWriter, pipe: Connection) -> None:
        self.work, self.writer, self.pipe = work, writer, pipe
        kinds = {spec.kind for spec in writer.meta.arrays if spec.digest in work.digests}
        self.teacher = build_teacher(work.embed.teacher, cache=work.cache) if "embedding" in kinds else None
        rate = self.teacher.sample_rate_hz if self.teacher is not None else 0
        self.renderer = ShardRenderer(work, writer, rate)
        self.log_mel = LogMel(work.embed.frontend).eval()
        self.rendered: queue.Queue[tuple[RenderedBatch, list[ArraySpec]] | None] = queue.Queue(BATCHES_AHEAD)
        self.computed: queue.Queue[ShardArrays | None] = queue.Queue(1)
        self._sending = threading.Lock()

    def run(self) -> None:
        self._send(Message("ready"))
        renderer, writer = self._thread(self._render), self._thread(self._write)
        arrays: ShardArrays | None = None
        while (item := self.rendered.get()) is not None:
            batch, specs = item
            if arrays is None:
                arrays = ShardArrays(batch.shard, specs, self.writer, self.teacher, self.log_mel)
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
            for batch in self.renderer.batches(shard, specs):
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
                # The other threads may wait on a queue for ever; this process has nothing left to do.
                self._send(_failed(error))
                os._exit(1)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _send(self, message: Message) -> None:
        with self._sending:
            self.pipe.send(message)
