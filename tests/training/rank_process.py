"""Processes that train a job together in the tests, without a launcher: started ready to train, and killed at will."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket

import torch

from pipeline.errors import TrainingError
from pipeline.ranks import Rank
from pipeline.training.distributed import joined
from pipeline.training.job import Job, run_job
from pipeline.training.loop import Progress

GONE_STATUS, BAD_STATUS = 7, 8


def train_together(job: Job, world: int = 2, killed: tuple[int, int] | None = None) -> list[int | None]:
    """Train ``job`` and return each process's exit code.

    Args:
        killed: rank and step: that process gets kill -9 after that update.
    """
    # The torch that a forkserver has imported once spares each process its seconds of start.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.rank_process"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=_train, args=(job.to_json(), Rank(rank, world), port, killed))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _train(job: str, rank: Rank, port: int, killed: tuple[int, int] | None) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def strike(progress: Progress) -> None:
        if (rank.rank, progress.step) == killed:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        with joined(rank, "cpu") as group:
            run_job(Job.from_json(job), group=group, on_progress=strike)
    except TrainingError as error:
        os._exit(GONE_STATUS if "went away" in str(error) else BAD_STATUS)
