"""A checkpoint of one's own in the table, for tests."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
import torch

from pipeline.checkpoints.table import CHECKPOINTS, Checkpoint


def saved(value: object, *, legacy: bool = False) -> bytes:
    """Return what torch.save writes of ``value``."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def enter(monkeypatch: pytest.MonkeyPatch, name: str = "made", **fields: object) -> Checkpoint:
    """Put a checkpoint called ``name`` into the table for the length of a test."""
    given = {
        "name": name, "teacher": name, "file": f"{name}.pt", "licence": "CC0-1.0", "citation": "A. Nobody, 2024",
        "published_at": f"https://example.org/{name}", **fields,
    }  # fmt: skip
    entry = Checkpoint.model_validate(given)
    monkeypatch.setitem(CHECKPOINTS, name, entry)
    return entry


def wheel_in_cache(content: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a wheel around ``content`` into the cache, and put it into the table as teacher 'made'."""
    path = cache / "teachers" / "made" / "made-1-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("made/checkpoint.pth", content)
    enter(
        monkeypatch, requirement="made==1", archive=path.name, member="made/checkpoint.pth",
        file="checkpoint.pth", archive_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        sha256=hashlib.sha256(content).hexdigest(), allow=("numpy_scalars",),
    )  # fmt: skip
    return path
