"""Artifacts: a folder, its configuration, what made it, and a marker that is written last and whole."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.config import canonical_json, digest
from pipeline.errors import MissingArtifactError

MARKER = "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: where it is and what its marker says.

    Attributes:
        folder: the artifact's folder.
        kind: ``manifest``, ``store``, ``run``, ``clusters``, ``qat``, ``export``, ``evaluation``, ``benchmark``,
            ``report`` or ``scenes``.
        digest: SHA-256 of ``{"kind", "config", "inputs"}``: the identity of the work.
        config: the configuration that the work depended on.
        inputs: name to digest of each artifact or file that went in.
        provenance: git revision, versions, device, time.
        summary: small results worth reading without opening anything else.
    """

    folder: Path
    kind: str
    digest: str
    config: dict[str, Any]
    inputs: dict[str, str]
    provenance: dict[str, Any]
    summary: dict[str, Any]


def identity(kind: str, config: Any, inputs: dict[str, str]) -> str:
    """Return the digest that names the work: same kind, configuration and inputs, same digest."""
    return digest({"kind": kind, "config": json.loads(canonical_json(config)), "inputs": inputs})


def folder_for(root: Path, kind: str, name: str, work: str) -> Path:
    """Return the folder of an artifact: ``<root>/<kind>/<name>-<first 12 of its digest>``."""
    return root / kind / f"{name}-{work[:12]}"


def finish(
    folder: Path, *, kind: str, config: Any, inputs: dict[str, str], summary: dict[str, Any] | None = None
) -> Artifact:
    """Write the marker that makes ``folder`` a finished artifact."""
    write_bytes(folder / MARKER, marker(kind=kind, config=config, inputs=inputs, summary=summary))
    return read(folder)


def marker(*, kind: str, config: Any, inputs: dict[str, str], summary: dict[str, Any] | None = None) -> bytes:
    """Return the content of a finished artifact's marker, for places that are no folder."""
    return _json_bytes(
        {
            "kind": kind,
            "digest": identity(kind, config, inputs),
            "config": json.loads(canonical_json(config)),
            "inputs": inputs,
            "provenance": provenance(),
            "summary": summary or {},
        }
    )


def is_finished(folder: Path, work: str | None = None) -> bool:
    """Whether ``folder`` holds a finished artifact (of this digest, where one is given)."""
    try:
        found = read(folder)
    except (MissingArtifactError, ValueError, KeyError):
        return False
    return work is None or found.digest == work


def read(folder: Path, *, run: str | None = None) -> Artifact:
    """Return the finished artifact in ``folder``.

    Raises:
        MissingArtifactError: there is none; ``run`` is the command that makes it.
    """
    path = Path(folder) / MARKER
    if not path.is_file():
        raise MissingArtifactError(f"no finished artifact in {folder}", expected=str(path), run=run)
    return parse(Path(folder), path.read_bytes())


def parse(folder: Path, content: bytes) -> Artifact:
    """Return the artifact that the marker's ``content`` describes.

    Raises:
        MissingArtifactError: it is no marker, so that the work has to be done again.
    """
    try:
        record = json.loads(content.decode())
        found = Artifact(
            folder,
            record["kind"],
            record["digest"],
            dict(record["config"]),
            dict(record["inputs"]),
            dict(record["provenance"]),
            dict(record["summary"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MissingArtifactError(
            f"{folder}/{MARKER} is no marker of a finished artifact", got=f"{type(error).__name__}: {error}"
        ) from error
    return found


@functools.cache
def provenance_base() -> dict[str, Any]:
    """Return what made this process's artifacts, without the time."""
    packages = {}
    for name in (
        "torch",
        "numpy",
        "zarr",
        "zarrs",
        "numba",
        "onnx",
        "onnxruntime",
        "soundfile",
        "soxr",
        "scikit-learn",
    ):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "packages": packages,
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
    }


def provenance() -> dict[str, Any]:
    """Return git revision, versions, device and the time now (UTC)."""
    return {**provenance_base(), "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` whole: under a temporary name in the same folder, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole."""
    write_bytes(path, _json_bytes(value))


def without_nan(value: Any) -> Any:
    """Return ``value`` with NaN as None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, default=str) + "\n").encode()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; renamed onto it on success, removed on failure.

    For writers that want a file name (pandas, onnx). A folder is replaced whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        temporary = Path(scratch) / path.name
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent.parent
    try:
        revision = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() or None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
