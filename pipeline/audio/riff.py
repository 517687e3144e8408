"""A RIFF/WAVE header read by hand: libsndfile mends lying headers silently; a reject must say what lied."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

MAX_CHUNKS = 256
UNCOMPRESSED = (1, 3, 0xFFFE)  # PCM, IEEE float, extensible


@dataclass(frozen=True)
class RiffHeader:
    """The fields of a WAVE file's ``fmt`` and ``data`` chunks.

    ``data_bytes`` is None where the header leaves it open, as a program that writes to a pipe must.
    """

    format_tag: int
    channels: int
    sample_rate_hz: int
    block_bytes: int
    data_offset: int
    data_bytes: int | None


def read_header(descriptor: int) -> RiffHeader | None:
    """Return the header of the RIFF/WAVE file at ``descriptor``, or None if it is none; moves no offset."""
    head = os.pread(descriptor, 12, 0)
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RIFX") or head[8:] != b"WAVE":
        return None
    order = "<" if head[:4] == b"RIFF" else ">"
    position, fields = 12, None
    for _ in range(MAX_CHUNKS):
        chunk = os.pread(descriptor, 8, position)
        if len(chunk) < 8:
            return None
        name, size = struct.unpack(f"{order}4sI", chunk)
        if name == b"fmt ":
            body = os.pread(descriptor, 16, position + 8)
            if len(body) < 16:
                return None
            tag, channels, rate, _, block_bytes, _ = struct.unpack(f"{order}HHIIHH", body)
            fields = (tag, channels, rate, block_bytes)
        elif name == b"data":
            if fields is None:
                return None
            left_open = size == 0 or size >= 0xFFFFFFFF - 0xFFFF
            return RiffHeader(*fields, position + 8, None if left_open else size)
        position += 8 + size + size % 2
    return None


def declared_frames(descriptor: int, file_bytes: int) -> int | None:
    """Return the frames that an uncompressed WAVE header claims and the file does not hold, else None.

    None means: believe the decoder. A length left open (0, or almost 4 GiB) is no lie.
    """
    header = read_header(descriptor)
    if header is None or header.data_bytes is None or header.block_bytes == 0:
        return None
    if header.format_tag not in UNCOMPRESSED:
        return None
    if header.data_offset + header.data_bytes <= file_bytes:
        return None
    return header.data_bytes // header.block_bytes
