"""Several trials at the same time: threads that ask for work, each with one training process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.search.liveness import BEAT_SECONDS
from pipeline.search.study import Interrupted, SharedStudy

if TYPE_CHECKING:
    from optuna.trial import Trial


class Body(Protocol):
    """What is done with one trial: it ends the trial in the study, unless it raises ``Interrupted``."""

    def __call__(self, trial: Trial, values: dict[str, Any], stopping: threading.Event) -> None: ...


def work(
    study: SharedStudy, *, budget: int, slots: int, suggest: Callable[[Trial], dict[str, Any]], body: Body
) -> None:
    """Ask for trials and do them, ``slots`` at a time, until ``budget`` of the whole study are done or under way.

    On KeyboardInterrupt, and where a thread raises, every running training writes its checkpoint and its trial
    is left for the next process.

    Raises:
        KeyboardInterrupt: stopped.
        Exception: what ``body`` raised.
    """
    stopping = threading.Event()

    def slot() -> None:
        while not stopping.is_set():
            found = study.next_trial(budget, suggest)
            if found is None:
                return
            try:
                body(*found, stopping)
            except Interrupted:
                study.close(found[0], "FAIL")
            except BaseException:
                study.close(found[0], "FAIL")
                raise

    with ThreadPoolExecutor(slots, thread_name_prefix="trial") as pool:
        waiting: set[Future[None]] = {pool.submit(slot) for _ in range(slots)}
        try:
            beaten = time.monotonic()
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if time.monotonic() - beaten > BEAT_SECONDS:
                    beaten = time.monotonic()
                    study.beat()
        except BaseException:
            stopping.set()
            raise
