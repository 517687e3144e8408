"""Results kept on disk by content: one compressed npz file a digest, read if whole, else made anew and written."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline import artifact

Result = TypeVar("Result")
# What a flipped byte makes of a zip file: another method, a password, an impossible offset, a stream that breaks off.
DAMAGE = (ValueError, KeyError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_or_make(
    folder: Path,
    digest: str,
    make: Callable[[], Result],
    pack: Callable[[Result], Mapping[str, Any]],
    unpack: Callable[[Mapping[str, np.ndarray]], Result],
) -> Result:
    """Return what ``<folder>/<digest>.npz`` holds; where it is absent or damaged, what ``make`` gives, kept there.

    Args:
        folder: of earlier results.
        digest: of everything that the result depends on.
        make: computes the result; its errors are passed on.
        pack: result to arrays by name, in the order in which they are written.
        unpack: the reverse.
    """
    path = folder / f"{digest}.npz"
    found = _read(path, unpack)
    if found is None:
        found = make()
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **pack(found))
        artifact.write_bytes(path, buffer.getvalue())
    return found


def _read(path: Path, unpack: Callable[[Mapping[str, np.ndarray]], Result]) -> Result | None:
    """Return what is in ``path``; None where it is absent or damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return unpack(stored)
    except DAMAGE:
        return None
