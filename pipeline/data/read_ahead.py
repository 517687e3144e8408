"""Runs an iterator in a background thread, a fixed number of items ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """The producer's last word, with the error that ended it if one did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """Context manager whose value iterates over ``source`` while a thread makes the items to come.

    At most ``depth`` items are made or being made beyond the one in use, so ``depth`` bounds the memory.
    Leaving the context stops and joins the thread, and closes ``source`` in it. An error in ``source`` is
    raised where the items are taken.

    Args:
        source: generator to run; nobody else may touch it.
        depth: items ahead.
        name: the thread's name.
    """

    def __init__(self, source: Generator[T], depth: int, name: str) -> None:
        self._source = source
        self._items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._permits = threading.Semaphore(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Iterator[T]:
        self._thread.start()
        return self._taken()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._permits.release()
        self._thread.join()

    def _taken(self) -> Iterator[T]:
        while True:
            item = self._items.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            self._permits.release()
            yield item

    def _run(self) -> None:
        try:
            while True:
                self._permits.acquire()
                if self._stop.is_set():
                    break
                try:
                    item = next(self._source)
                except StopIteration:
                    break
                self._items.put(item)
            self._source.close()
            self._items.put(_End())
        except BaseException as error:
            # Not swallowed: ``_taken`` raises it in the thread that iterates.
            self._items.put(_End(error))
