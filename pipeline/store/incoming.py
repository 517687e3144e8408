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

    def stage(self, content: bytes) -> Path:
        """Write ``content`` to a temporary file, synced to disk, and return its path."""
        temporary = self.folder / uuid.uuid4().hex
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def place(self, staged: Path, name: str) -> None:
        """Rename a staged file to ``name`` in the store and sync the folder that now names it."""
        path = self.store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(path)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def drop(self, staged: Path) -> None:
        """Remove a staged file."""
        staged.unlink()

    def write(self, name: str, content: bytes) -> None:
        """Write the file ``name`` whole."""
        self.place(self.stage(content), name)

    def adopt(self, folder: str, files: dict[str, bytes]) -> None:
        """Write a new folder and its files, whole or not at all, unless another process was first."""
        scratch, target = self.folder / uuid.uuid4().hex, self.store / folder
        for name, content in files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(content)
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
