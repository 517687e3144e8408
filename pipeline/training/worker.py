"""The process that trains one run: ``python -m pipeline.training.worker``, and what others like it share.

A job comes in as one line of JSON on standard input; events go out as lines of JSON on standard output.
SIGTERM, or a reader that has gone away, ends the run at its next step with a checkpoint; SIGINT is left to
the parent, which gets it from the same terminal.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import OssicleError

if TYPE_CHECKING:
    from pipeline.artifact import Artifact

EVENT_SECONDS = 0.25
STOPPED_STATUS, FAILED_STATUS = 3, 4


class Events:
    """Writes events; after the reader is gone it only remembers that it is."""

    def __init__(self) -> None:
        self.stop = False
        self._last = 0.0

    def send(self, event: str, **fields: Any) -> None:
        """Write one event."""
        try:
            sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self.stop = True

    def send_progress(self, **fields: Any) -> None:
        """Write a progress event, at most one every ``EVENT_SECONDS``."""
        now = time.monotonic()
        if now - self._last >= EVENT_SECONDS:
            self._last = now
            self.send("progress", **fields)


class _Warnings(logging.Handler):
    def __init__(self, events: Events) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.send("warning", text=record.getMessage())


class Train(Protocol):
    """Trains the job that one line of JSON describes."""

    def __call__(
        self, line: str, *, on_progress: Callable[[Any], None], should_stop: Callable[[], bool]
    ) -> Artifact: ...


def main() -> int:
    """Train the job on standard input; return 0, ``STOPPED_STATUS`` or ``FAILED_STATUS``."""
    return serve(_training)


def _training() -> Train:
    from pipeline.training.job import Job, run_job

    return lambda line, **hooks: run_job(Job.from_json(line), **hooks)


def serve(load: Callable[[], Train]) -> int:
    """Train the job on standard input and tell of it on standard output; return the process's status.

    Args:
        load: imports what trains. Called once signals are handled: importing torch takes seconds.
    """
    events = Events()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        events.stop = True

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("pipeline").addHandler(_Warnings(events))
    # Here, not above, for the same reason.
    from pipeline.training.loop import Progress, TrainingStopped

    train = load()

    def progress(now: Progress) -> None:
        events.send_progress(
            step=now.step, steps=now.steps, loss=now.loss, samples_per_second=now.samples_per_second
        )

    try:
        done = train(sys.stdin.readline(), on_progress=progress, should_stop=lambda: events.stop)
    except TrainingStopped as stopped:
        events.send("stopped", step=stopped.step)
        return STOPPED_STATUS
    except OssicleError as error:
        events.send("failed", text=str(error), kind=type(error).__name__)
        return FAILED_STATUS
    except Exception as error:
        # The boundary of the process: the traceback goes to the run's log, the parent reports one line.
        traceback.print_exc()
        events.send("failed", text=f"{type(error).__name__}: {error}", kind="bug")
        return FAILED_STATUS
    events.send("done", summary=done.summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
