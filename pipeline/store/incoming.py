"""Where a store's files are written before they are renamed into place, and who may sweep it.

Every live writer holds the folder's lock shared; the kernel lets go of it when the process ends, ``kill -9``
included. A writer that finds itself alone knows that every temporary file belongs to the dead.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import artifact

FOLDER = ".incoming"
ALIVE = ".lock"
COMMIT = ".lock.commit"


class Incoming:
    """The temporary folder of one store, and the locks of one writer on it."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.folder = store / FOLDER
        store.mkdir(parents=True, exist_ok=True)
        self._alive = os.open(store / ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sweep()
        except BlockingIOError:
            pass  # another writer is alive, and some of the files are its own
        fcntl.flock(self._alive, fcntl.LOCK_SH)
        self.folder.mkdir(exist_ok=True)

    def close(self) -> None:
        """Let go of the lock."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def path(self) -> Path:
        """Return a fresh temporary path."""
        return self.folder / uuid.uuid4().hex

    def stage(self, content: bytes) -> Path:
        """Write ``content`` to a temporary file, synced to disk, and return its path."""
        temporary = self.path()
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def write(self, path: Path, content: bytes) -> None:
        """Write ``content`` to ``path`` whole."""
        place(self.stage(content), path)

    def adopt(self, scratch: Path, target: Path) -> None:
        """Rename a finished temporary folder to ``target``, unless another process was first."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(scratch)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the store's commit lock."""
        handle = os.open(self.store / COMMIT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _sweep(self) -> None:
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        for leftover in self.store.glob(f".{artifact.MARKER}.*.tmp"):
            leftover.unlink(missing_ok=True)


def place(temporary: Path, path: Path) -> None:
    """Rename a synced temporary file to ``path`` and sync the folder that now names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
