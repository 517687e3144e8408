"""One way to a clip's samples, whether it is a file or a row of a pack (``pack.hdf5#17``)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from pipeline.audio import decode, packs
from pipeline.errors import Hdf5Error

_OPEN = packs.OpenPacks()


def read(
    path: os.PathLike[str] | str | bytes, start: int = 0, frames: int | None = None
) -> tuple[Float32[np.ndarray, " samples"], int]:
    """Return mono samples at the clip's own rate, and that rate in Hz: ``decode.read`` for packs too.

    Raises:
        AudioError: unusable; ``reason`` is a key of ``decode.REASONS``.
    """
    packed = packs.reference(path)
    if packed is None:
        return decode.read(path, start, frames)
    found = _row(path, *packed)
    if isinstance(found, bytes):
        return decode.read(path, start, frames, content=found)
    samples, rate = found
    stop = None if frames is None else start + frames
    part = decode.checked(samples[start:stop], path, f"from frame {start}")
    return part, rate


def inspect(
    path: os.PathLike[str] | str | bytes, min_seconds: float = 0.0, observer: decode.Observer | None = None
) -> decode.Inspection:
    """Read a clip to its end and return what it holds: ``decode.inspect`` for packs too.

    Raises:
        AudioError: unusable, or shorter than ``min_seconds``; ``reason`` is a key of ``decode.REASONS``.
    """
    packed = packs.reference(path)
    if packed is None:
        return decode.inspect(path, min_seconds, observer)
    found = _row(path, *packed)
    if isinstance(found, bytes):
        return decode.inspect(path, min_seconds, observer, content=found)
    samples, rate = found
    return decode.inspect_samples(samples, rate, path, min_seconds, observer)


def file_of(path: os.PathLike[str] | str | bytes) -> Path:
    """Return the file that holds the clip ``path``: itself, or its pack."""
    packed = packs.reference(path)
    return Path(os.fsdecode(path)) if packed is None else packed[0]


def _row(
    path: os.PathLike[str] | str | bytes, pack: Path, row: int
) -> bytes | tuple[Float32[np.ndarray, " samples"], int]:
    if not pack.exists():
        raise decode.rejection("missing", path)
    try:
        opened = _OPEN.get(pack)
        if opened.kind == "mp3":
            return opened.mp3(row)
        return opened.waveform(row), opened.sample_rate_hz
    except Hdf5Error as error:
        raise decode.rejection("bad_pack", path, " ".join(str(error).split())) from error
