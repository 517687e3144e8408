"""Several runs at the same time, each in a process of its own with its own threads."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from pipeline.training.job import Job
from pipeline.training.worker import STOPPED_STATUS

LOG_FILE = "train.log"
WORKER = "pipeline.training.worker"
STOP_SECONDS = 120.0
PACKAGE_ROOT = Path(__file__).resolve().parents[2]

Event = dict[str, Any]


@dataclass
class Outcome:
    """How a run ended: ``done`` with its summary, ``stopped`` at a step, or ``failed`` and why."""

    state: Literal["done", "stopped", "failed"]
    summary: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    error: str = ""


def cores() -> int:
    """Return the number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_of(jobs: int, threads: int) -> int:
    """Return how many runs go at the same time: ``jobs``, or as many as the cores hold."""
    return jobs or max(1, cores() // threads)


def train_all(
    jobs: Sequence[Job],
    limit: int,
    on_event: Callable[[Job, Event], None] = lambda job, event: None,
    worker: str = WORKER,
) -> dict[str, Outcome]:
    """Train every job, at most ``limit`` at a time, and return each outcome by the run's label.

    A run that fails leaves the others alone. On KeyboardInterrupt every running one writes a checkpoint,
    then the interrupt is raised again.

    Args:
        jobs: the runs, started in order.
        limit: processes at the same time.
        on_event: called in this thread with ``start``, ``progress``, ``warning``, ``stopped``, ``failed`` or
            ``done`` events.
        worker: the module whose process trains one job; it ends in ``pipeline.training.worker.serve``.
    """
    waiting, running = list(jobs), dict[str, _Process]()
    outcomes: dict[str, Outcome] = {}
    events: queue.Queue[tuple[Job, Event | None]] = queue.Queue()
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                job = waiting.pop(0)
                running[job.run.label] = _Process(job, events, worker)
                on_event(job, {"event": "start"})
            _handle(*events.get(), running, outcomes, on_event)
    except BaseException:
        # Whatever ends this process early must not leave trainings behind.
        for process in running.values():
            process.popen.terminate()
        while running:
            try:
                _handle(*events.get(timeout=STOP_SECONDS), running, outcomes, on_event)
            except queue.Empty:
                for process in running.values():
                    process.popen.kill()
        raise
    return outcomes


def _handle(
    job: Job,
    event: Event | None,
    running: dict[str, _Process],
    outcomes: dict[str, Outcome],
    on_event: Callable[[Job, Event], None],
) -> None:
    label = job.run.label
    if event is None:
        outcomes[label] = running.pop(label).outcome()
        if outcomes[label].state == "failed":
            on_event(job, {"event": "failed", "text": outcomes[label].error})
        return
    running[label].note(event)
    if event["event"] != "failed":
        on_event(job, event)


class _Process:
    """One run's process and the thread that reads its events."""

    def __init__(self, job: Job, events: queue.Queue[tuple[Job, Event | None]], worker: str) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        self.job = job
        self._last: Event = {}
        self._log = job.folder / LOG_FILE
        with self._log.open("ab") as log:
            # A group of its own: Ctrl-C reaches the parent alone, which then asks each run to stop.
            self.popen = subprocess.Popen(
                [sys.executable, "-m", worker],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=_environment(job.threads), process_group=0,
            )  # fmt: skip
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        try:
            self.popen.stdin.write(job.to_json() + "\n")
            self.popen.stdin.close()
        except BrokenPipeError:
            self._last = {"event": "failed", "text": "the training process ended before it began"}
        threading.Thread(target=self._read, args=(self.popen.stdout, events), daemon=True).start()

    def _read(self, lines: IO[str], events: queue.Queue[tuple[Job, Event | None]]) -> None:
        for line in lines:
            if line.startswith("{"):
                events.put((self.job, json.loads(line)))
        events.put((self.job, None))

    def note(self, event: Event) -> None:
        """Remember an event that says how the run ended."""
        if event["event"] in ("done", "stopped", "failed"):
            self._last = event

    def outcome(self) -> Outcome:
        """Wait for the process to end and say how."""
        status = self.popen.wait()
        kind = self._last.get("event")
        if kind == "done" and status == 0:
            return Outcome("done", summary=self._last["summary"])
        if kind == "stopped" and status == STOPPED_STATUS:
            return Outcome("stopped", step=self._last["step"])
        if kind == "failed":
            return Outcome("failed", error=f"{self._last['text']}\n  log:      {self._log}")
        ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return Outcome(
            "failed", error=f"the training process ended without a word ({ended})\n  log:      {self._log}"
        )


def _environment(threads: int) -> dict[str, str]:
    search = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": search,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # numpy's BLAS beside busy cores costs more than it gives (a hundredfold was measured).
        "OPENBLAS_NUM_THREADS": "1",
    }
