"""Stage 1 on a Ray cluster: one task owns a shard, actors hold the teacher, lost workers are Ray's job.

An actor runs the same threads as a process of the pool, so a shard has the same bytes whichever engine made it.
The store must lie where every node sees it. ``RAY_ADDRESS`` names a running cluster; without it one is started
on this machine for the length of the call.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.embedding.pool import (
    MAX_DEATHS,
    SHARDS_AHEAD,
    WORKER_ENVIRONMENT,
    WorkerError,
    worker_environment,
)
from pipeline.embedding.shard import EmbedWork
from pipeline.embedding.worker import Message, ShardWorker, failed
from pipeline.errors import MissingDependencyError, OssicleError

LOCAL_OBJECT_STORE_BYTES = 100 << 20  # shards travel by the shared folder; Ray moves numbers alone

log = logging.getLogger(__name__)


class ShardCalls:
    """The worker's end of an actor: calls go in as shards, messages come back as their results."""

    def __init__(self) -> None:
        self._shards: queue.Queue[int | None] = queue.Queue()
        self._changed = threading.Condition()
        self._rows: dict[int, int] = {}
        self._done: set[int] = set()
        self._failure: Message | None = None

    def embed(self, shard: int) -> int:
        """Make ``shard``, commit it and return how many rows were computed.

        Raises:
            OssicleError: what a user can mend.
            WorkerError: anything else; the trace is in it.
        """
        self._shards.put(shard)
        with self._changed:
            self._changed.wait_for(lambda: shard in self._done or self._failure is not None)
            if self._failure is not None:
                raise self._failure.error or WorkerError(f"an embed actor failed:\n{self._failure.trace}")
            self._done.discard(shard)
            return self._rows.pop(shard, 0)

    def recv(self) -> int | None:
        """Give the worker its next shard."""
        return self._shards.get()

    def send(self, message: Message) -> None:
        """Hear from the worker."""
        with self._changed:
            if message.kind == "rows":
                self._rows[message.shard] = self._rows.get(message.shard, 0) + message.rows
            elif message.kind == "done":
                self._done.add(message.shard)
            elif message.kind == "failed":
                self._failure = self._failure or message
            self._changed.notify_all()


class ShardActor:
    """What Ray starts: calls of ``embed``, two at a time, feed the threads of one ``ShardWorker``.

    Args:
        work: what is to be done.
        folder: where the command was called, so that a recipe's relative paths mean the same on every node.
    """

    def __init__(self, work: EmbedWork, folder: str) -> None:
        self.work, self.folder, self.calls = work, folder, ShardCalls()
        threading.Thread(target=self._run, daemon=True).start()

    def embed(self, shard: int) -> int:
        """Make ``shard``, commit it and return how many rows were computed."""
        return self.calls.embed(shard)

    def _run(self) -> None:
        try:
            import torch

            from pipeline.store.writer import StoreWriter

            torch.set_num_threads(1)
            _enter(self.folder)
            with StoreWriter.open(self.work.store) as writer:
                ShardWorker(self.work, writer, self.calls, end=lambda: None).run()
        except BaseException as error:  # it crosses to whoever waits in ``embed``
            self.calls.send(failed(error))


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise WorkerError(
            f"the node {platform.node()} does not see {folder}",
            expected="a folder that every node of the cluster mounts at the same path",
            got=str(error),
            run="ossicle embed --engine ray from a shared folder",
        ) from error


def embed_shards(
    work: EmbedWork, shards: Sequence[int], workers: int, on_message: Callable[[Message], None]
) -> None:
    """Embed ``shards`` by actors of a Ray cluster; returns when all are committed.

    Args:
        work: what is to be done; its folders must be seen by every node.
        shards: which are pending.
        workers: actors; 0 = one a core of the cluster, or one a GPU where the teacher's device is one.
        on_message: told of every finished shard.

    Raises:
        MissingDependencyError: Ray is not installed.
        OssicleError: an actor met an error that running again cannot mend.
        WorkerError: an actor was lost more often than Ray starts it again.
    """
    ray = _ray()
    with _cluster(ray, workers, len(shards)):
        device = work.embed.teacher.device
        need = {"num_cpus": 1, "num_gpus": 1 if device.startswith("cuda") else 0}
        total = ray.cluster_resources().get("GPU" if need["num_gpus"] else "CPU", 1)
        count = max(1, min(workers or int(total), int(total), len(shards)))
        # Two calls at a time, so that an actor renders the next shard while it computes one.
        kind = ray.remote(ShardActor).options(
            **need,
            max_restarts=MAX_DEATHS,
            max_task_retries=MAX_DEATHS,
            max_concurrency=SHARDS_AHEAD,
        )
        actors = [kind.remote(work, str(Path.cwd())) for _ in range(count)]
        try:
            _share_out(ray, actors, deque(shards), on_message)
        finally:
            for actor in actors:
                ray.kill(actor)


def _share_out(
    ray: Any, actors: list[Any], pending: deque[int], on_message: Callable[[Message], None]
) -> None:
    running: dict[Any, tuple[int, Any]] = {}

    def give(actor: Any) -> None:
        if pending:
            shard = pending.popleft()
            running[actor.embed.remote(shard)] = (shard, actor)

    for _ in range(SHARDS_AHEAD):
        for actor in actors:
            give(actor)
    on_message(Message("ready"))
    while running:
        finished, _ = ray.wait(list(running), num_returns=1)
        for reference in finished:
            shard, actor = running.pop(reference)
            rows = _result(ray, reference, shard)
            on_message(Message("rows", shard, rows))
            on_message(Message("done", shard))
            give(actor)


def _result(ray: Any, reference: Any, shard: int) -> int:
    try:
        return int(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OssicleError):
            raise error.cause from None
        raise WorkerError(f"an embed actor failed at shard {shard}", got=str(error)) from error
    except ray.exceptions.RayActorError as error:
        raise WorkerError(
            f"an embed actor was lost {MAX_DEATHS + 1} times, last at shard {shard}",
            got=" ".join(str(error).split())[:300],
            run="ossicle embed --engine ray --set embed.workers=1 (finished shards are kept)",
        ) from error


@contextmanager
def _cluster(ray: Any, workers: int, shards: int) -> Iterator[None]:
    """Be connected to the cluster of ``RAY_ADDRESS``, or to one of this machine that ends with the block."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        _connect(ray, max(1, min(workers or len(os.sched_getaffinity(0)), shards)), attach=bool(address))
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise WorkerError(
            f"no Ray cluster can be reached at RAY_ADDRESS={address}"
            if address
            else "Ray did not start here",
            got=" ".join(str(error).split())[:300],
            run="ray status; where the cluster asks for a token, export RAY_AUTH_MODE=token first"
            if address
            else "ossicle embed, without --engine ray; Ray's reasons are in /tmp/ray/session_latest/logs",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, workers: int, attach: bool) -> None:
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        "configure_logging": False,
    }
    if attach:
        ray.init(runtime_env={"env_vars": WORKER_ENVIRONMENT}, **quiet)
        return
    # Inherited, and not a runtime_env: workers that Ray starts ahead have none, and would be thrown away.
    with worker_environment():
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            **quiet,
        )


def _ray() -> Any:
    # Nothing about a user's runs is sent anywhere unless they ask for it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingDependencyError(
            "--engine ray needs Ray, which is not installed", run="pip install 'ossicle[ray]'"
        ) from error
    return ray
