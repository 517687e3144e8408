"""The processes of stage 1: hands out whole shards, notices a worker that dies, and makes its shards anew."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from pipeline.config import EmbedConfig
from pipeline.embedding import worker
from pipeline.embedding.shard import EmbedWork
from pipeline.embedding.worker import Message
from pipeline.errors import OssicleError

SHARDS_AHEAD = 2  # the one being computed, and the next, so that rendering never waits
MAX_DEATHS = 3
# One thread for every numerical library; and freed memory is kept: a batch's arrays are larger than what glibc
# keeps by itself, and asking the kernel for them anew took 3 ms of every 40 ms that a window takes. One arena for
# all threads, for what a thread's own keeps is 64 MB at most.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TOP_PAD_": str(64 << 20),
}

log = logging.getLogger(__name__)


class WorkerError(OssicleError, RuntimeError):
    """A worker process failed or died more often than can be passed over."""


@dataclass
class _Member:
    process: SpawnProcess
    pipe: Connection
    shards: deque[int] = field(default_factory=deque)
    reported_rows: int = 0
    dismissed: bool = False
    gpu: int = 0


def worker_count(asked: int, shards: int, device: str, ranks: int = 1) -> int:
    """Return how many processes to start: ``asked``, or one a core (8 a GPU at most); never more than shards.

    ``ranks`` processes of one host share its cores.
    """
    cores = max(1, len(os.sched_getaffinity(0)) // ranks)
    gpus = gpu_count() if device == "cuda" else 1
    count = asked or (cores if device == "cpu" else min(8 * gpus, cores))
    return max(1, min(count, shards))


def gpu_count() -> int:
    """Return how many GPUs this machine has, at least 1 (which is then none)."""
    return max(1, torch.cuda.device_count())


def on_gpu(embed: EmbedConfig, gpu: int) -> EmbedConfig:
    """Return ``embed`` with every teacher that is to run on "cuda", any GPU, on "cuda:``gpu``"."""
    first, *more = (
        teacher.model_copy(update={"device": f"cuda:{gpu}"}) if teacher.device == "cuda" else teacher
        for teacher in embed.all_teachers
    )
    return embed.model_copy(update={"teacher": first, "more_teachers": tuple(more)})


def embed_shards(
    work: EmbedWork, shards: Sequence[int], workers: int, on_message: Callable[[Message], None]
) -> None:
    """Embed ``shards``; returns when all are committed.

    Workers are fresh processes of one thread each, so a shard's bytes depend neither on their number nor on
    which of them made it.

    Args:
        work: what is to be done.
        shards: which are pending.
        workers: processes.
        on_message: told of everything; ``rows`` is negative where a dead worker's rows must be made again.

    Raises:
        OssicleError: a worker met an error that running again cannot mend.
        WorkerError: a worker failed, or died for the third time in a row of the same shard.
    """
    pool = _Pool(work, deque(shards), on_message)
    try:
        pool.start(workers)
        pool.serve()
    finally:
        pool.stop()


class _Pool:
    def __init__(self, work: EmbedWork, pending: deque[int], on_message: Callable[[Message], None]) -> None:
        self.work, self.pending, self.on_message = work, pending, on_message
        self.members: list[_Member] = []
        self.deaths: Counter[int] = Counter()
        self.context = multiprocessing.get_context("spawn")
        self.gpus = gpu_count()

    def start(self, count: int) -> None:
        with worker_environment():
            for _ in range(count):
                ours, theirs = self.context.Pipe()
                gpu = self._free_gpu()
                work = replace(self.work, embed=on_gpu(self.work.embed, gpu))
                process = self.context.Process(target=worker.main, args=(work, theirs), daemon=True)
                process.start()
                theirs.close()  # or its end would never be seen
                self.members.append(_Member(process, ours, gpu=gpu))

    def _free_gpu(self) -> int:
        """Return the GPU with the fewest workers: round robin, and a dead worker's successor takes its place."""
        taken = Counter(member.gpu for member in self.members)
        return min(range(self.gpus), key=lambda gpu: taken[gpu])

    def serve(self) -> None:
        while self.members:
            for pipe in wait([member.pipe for member in self.members]):
                member = next(m for m in self.members if m.pipe is pipe)
                try:
                    message = member.pipe.recv()
                except (EOFError, ConnectionResetError):
                    self._ended(member)
                else:
                    self._heard(member, message)

    def stop(self) -> None:
        for member in self.members:
            member.process.terminate()
        for member in self.members:
            member.process.join()
            member.pipe.close()

    def _heard(self, member: _Member, message: Message) -> None:
        if message.kind == "failed":
            if message.error is not None:
                raise message.error
            log.error("a worker failed:\n%s", message.trace)
            last = message.trace.strip().splitlines()[-1]
            raise WorkerError("an embed worker failed", got=last, run="ossicle embed again, or report this")
        if message.kind == "rows":
            member.reported_rows += message.rows
        if message.kind == "done":
            member.shards.remove(message.shard)
            # Rows of the next shard may be counted already; a death then takes too few back, never too many.
            member.reported_rows = 0
        self.on_message(message)
        if message.kind in ("ready", "done"):
            self._feed(member)

    def _feed(self, member: _Member) -> None:
        while self.pending and len(member.shards) < SHARDS_AHEAD:
            shard = self.pending.popleft()
            if self._tell(member, shard):
                member.shards.append(shard)
            else:
                self.pending.appendleft(shard)
                return
        if not self.pending and not member.shards and not member.dismissed:
            member.dismissed = self._tell(member, None)

    def _tell(self, member: _Member, shard: int | None) -> bool:
        try:
            member.pipe.send(shard)
        except (BrokenPipeError, ConnectionResetError):
            return False  # it died; its end of the pipe says so next
        return True

    def _ended(self, member: _Member) -> None:
        member.process.join()
        member.pipe.close()
        self.members.remove(member)
        if not member.shards and not self.pending:
            return
        suspect = member.shards[0] if member.shards else -1
        self.deaths[suspect] += 1
        how = _ending(member.process.exitcode)
        if self.deaths[suspect] >= MAX_DEATHS:
            where = f"at shard {suspect}" if suspect >= 0 else "before its first shard"
            raise WorkerError(
                f"an embed worker died {MAX_DEATHS} times {where}",
                got=how,
                run="ossicle embed --set embed.workers=1 (finished shards are kept)",
            )
        log.warning("an embed worker ended (%s); its shards %s are made again", how, list(member.shards))
        self.on_message(Message("rows", suspect, -member.reported_rows))
        self.pending.extendleft(reversed(member.shards))
        self.start(1)


def _ending(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"{name}, most likely for want of memory" if name == "SIGKILL" else name
    return f"exit status {exit_code}"


@contextmanager
def worker_environment() -> Iterator[None]:
    """Let processes started within have ``WORKER_ENVIRONMENT``; libraries read it once, when they load."""
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
