"""Writes a store in children that are killed before their k-th change of the file system.

A process of its own, because it forks: zarr's event loop must not have started yet.
Run: ``python -m tests.store.killed_writer FOLDER ROWS STRIDE``; prints how many kills there were.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.store.writer import StoreWriter
from tests.store import made_store

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


def changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event announces a change: a removal, a renaming, or opening for writing."""
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        return (isinstance(mode, str) and mode[:1] in ("w", "x", "a")) or bool(
            isinstance(flags, int) and flags & (os.O_CREAT | os.O_TRUNC)
        )
    return event in CHANGES


def write(folder: Path, rows: int) -> None:
    """Create the store or go on with it, and finish it."""
    made = made_store.content(rows, rejected=(1, rows - 1))
    meta = made_store.meta(made_store.specs("uint8"), 8, 4)
    with StoreWriter.create(folder, made.rows, meta) as writer:
        made_store.write_pending(writer, made)
        writer.finish(config={}, inputs={})


def write_until(folder: Path, rows: int, change: int) -> bool:
    """Write in a child that is killed just before its ``change``-th change; return whether it was."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if changes_files(event, arguments):
                if seen == change:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(hook)
        try:
            write(folder, rows)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"the writer failed after change {change}")
    return False


def main(folder: Path, rows: int, stride: int) -> None:
    """For each moment: kill a fresh writer there, kill the one that resumes there too, then let one finish."""
    folder.mkdir(parents=True)
    reference = folder / "uninterrupted"
    if write_until(reference, rows, sys.maxsize):
        raise RuntimeError("nobody was to be killed")
    wanted = made_store.file_bytes(reference)
    kills = change = 0
    while write_until(folder / "killed", rows, change):
        kills += 1 + write_until(folder / "killed", rows, change)
        write_until(folder / "killed", rows, sys.maxsize)
        found = made_store.file_bytes(folder / "killed")
        if found != wanted:
            different = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
            raise RuntimeError(f"killed before change {change}, these differ: {different}")
        shutil.rmtree(folder / "killed")
        change += stride
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
