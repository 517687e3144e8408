"""Checkpoints of the teachers: found, verified, loaded without running code, converted once to safetensors."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.artifact import file_digest, replacing, write_json
from pipeline.checkpoints import safe_load
from pipeline.checkpoints.table import CHECKPOINTS, Checkpoint, known, of_teacher
from pipeline.config import TeacherConfig
from pipeline.errors import WeightsError
from pipeline.teachers import converted

__all__ = ["CHECKPOINTS", "Checkpoint", "Located", "Weights", "load", "locate", "plain", "teacher_folder"]

SOURCE = "source.json"
ARCHIVE_SUFFIXES = (".whl", ".zip")

Unwrap = Callable[[Any], tuple[dict[str, Tensor], dict[str, Any]]]


@dataclass(frozen=True)
class Weights:
    """A loaded checkpoint.

    Attributes:
        state: flat state dict under the network's names; do not write into it.
        extra: the JSON-able rest of the file.
        sha256: of the published file (not of its conversion).
        licence: of the weights.
        citation: authors, title, venue, year.
    """

    state: dict[str, Tensor]
    extra: dict[str, Any]
    sha256: str
    licence: str
    citation: str


@dataclass(frozen=True)
class Located:
    """A verified checkpoint.

    Attributes:
        checkpoint: which of the table it is.
        sha256: of its file.
        path: its file; None where the cache holds the conversion alone.
        unpacked: the file was unpacked from an archive and need not stay once it is converted.
    """

    checkpoint: Checkpoint
    sha256: str
    path: Path | None
    unpacked: bool = False


def plain(payload: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a flat state dict as it is.

    Raises:
        WeightsError: ``payload`` is something else.
    """
    if isinstance(payload, dict) and payload and all(isinstance(v, Tensor) for v in payload.values()):
        return payload, {}
    raise WeightsError(
        "the checkpoint is no flat state dict", expected="names and tensors", got=outline(payload)
    )


def outline(payload: Any) -> str:
    """Return in a few words what a checkpoint holds, for messages of loaders that expected something else."""
    if isinstance(payload, dict):
        names = [str(key) for key in payload]
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        return "a dict of " + ", ".join(names[:6]) + more if names else "an empty dict"
    if isinstance(payload, list | tuple):
        return f"a {type(payload).__name__} of {len(payload)}"
    return type(payload).__name__


def default_cache() -> Path:
    """Return ``$XDG_CACHE_HOME/ossicle``, by default under the home folder's ``.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ossicle"


def teacher_folder(name: str, cache: Path | None = None) -> Path:
    """Return the cache folder of one checkpoint's files."""
    return (cache or default_cache()) / "teachers" / name


def load(name: str, config: TeacherConfig, unwrap: Unwrap = plain, cache: Path | None = None) -> Weights:
    """Return the weights of ``name``, verified.

    Read from ``config.weights`` if that is given, else from the cache. The first load of a file converts it
    to safetensors in the cache; later loads read that.

    Args:
        name: a checkpoint of ``data_manifests/checkpoints``, or a teacher (its first checkpoint, or the one
            whose digest ``config.weights`` has).
        config: ``weights`` (a file, or the name of a fetched checkpoint of this teacher) and ``trust_sha256``.
        unwrap: from what the file holds to (state dict under the network's names, JSON-able rest); it raises
            WeightsError for a layout it does not know.
        cache: folder of downloads; default ``$XDG_CACHE_HOME/ossicle``.

    Raises:
        UnknownNameError: no such checkpoint.
        WeightsError: absent, of an unknown digest, unsafe, damaged, or of a wrong layout.
    """
    found = locate(name, config, cache)
    state, extra = unwrap(payload_of(found, cache))
    entry = found.checkpoint
    return Weights(state, extra, found.sha256, entry.licence, entry.citation)


def locate(name: str, config: TeacherConfig, cache: Path | None = None) -> Located:
    """Return the verified checkpoint that ``load`` would read; for teachers that read the file themselves.

    Raises:
        UnknownNameError: no such checkpoint.
        WeightsError: absent, or of an unknown digest.
    """
    entry = known(name)
    named = CHECKPOINTS.get(str(config.weights))
    if named is not None and named.teacher == entry.teacher and not Path(str(config.weights)).is_file():
        return _locate_cached(named, config.trust_sha256, cache)
    if config.weights is not None:
        return locate_file(entry, config.weights, config.trust_sha256, cache)
    return _locate_cached(entry, config.trust_sha256, cache)


def locate_file(
    entry: Checkpoint, path: Path, trust_sha256: str | None = None, cache: Path | None = None
) -> Located:
    """Return ``path`` verified against the digests known for ``entry`` and its siblings, or ``trust_sha256``.

    The member of a wheel or zip is unpacked into the cache.

    Raises:
        WeightsError: no such file, or its digest is neither known nor trusted.
    """
    if not path.is_file():
        raise WeightsError(
            f"the weights of {entry.name!r} are not there", expected=f"a file at {path}", got="no such file"
        )
    if path.stat().st_size > entry.max_bytes:
        got = f"{path.stat().st_size} bytes"
        raise WeightsError(f"{path.name} is too large", expected=f"{entry.max_bytes} bytes at most", got=got)
    digest = file_digest(path)
    siblings = [entry, *(other for other in of_teacher(entry.teacher) if other != entry)]
    if path.suffix in ARCHIVE_SUFFIXES:
        return _member(path, digest, siblings, trust_sha256, cache)
    return _verified(path, digest, siblings, trust_sha256)


def _verified(path: Path, digest: str, siblings: list[Checkpoint], trust: str | None) -> Located:
    for entry in siblings:
        if entry.sha256 == digest:
            return Located(entry, digest, path)
    if trust == digest:
        named = [entry for entry in siblings if path.name in (entry.file, *entry.files)]
        return Located((named or siblings)[0], digest, path)
    raise unknown_digest(path.name, digest, siblings, trust)


def unknown_digest(
    file: str, digest: str, siblings: list[Checkpoint], trust: str | None = None
) -> WeightsError:
    """Return the refusal of a file whose digest is not known, with what to do if it is trusted."""
    expected = [f"SHA-256 {entry.sha256} ({entry.name})" for entry in siblings if entry.sha256]
    if trust is not None:
        expected.append(f"SHA-256 {trust} (trusted)")
    name = siblings[0].name
    trusting = f"embed.teacher.trust_sha256={digest}"
    return WeightsError(
        f"{file} is not the known file of teacher {name!r}" if expected
        else f"no digest is known for the checkpoint {name!r}, so {file} is not trusted by itself",
        expected=" or ".join(expected) or f"a file of {siblings[0].published_at}, trusted by you",
        got=f"SHA-256 {digest}",
        run=f"if you trust its source: --set {trusting}, or ossicle fetch teacher {name} --from {file} "
        f"--trust-sha256 {digest}",
    )  # fmt: skip


def _member(
    path: Path, digest: str, siblings: list[Checkpoint], trust: str | None, cache: Path | None
) -> Located:
    """Unpack the checkpoint of a wheel or zip into the cache, verified by the archive's or its own digest."""
    whole = [entry for entry in siblings if entry.archive_sha256 == digest]
    entry = whole[0] if whole else siblings[0]
    try:
        with zipfile.ZipFile(path) as archive:
            info = _only_checkpoint(archive, entry, path)
            if info.file_size > entry.max_bytes:
                got = f"{info.file_size} bytes"
                raise WeightsError(
                    f"{path.name}: {info.filename} is too large", expected=entry.max_bytes, got=got
                )
            content = archive.read(info)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise WeightsError(
            f"{path.name} cannot be read", expected="a whole zip archive", got=str(error)
        ) from error
    name = Path(info.filename).name
    with replacing(teacher_folder(entry.name, cache) / name) as temporary:
        temporary.write_bytes(content)
        inner = file_digest(temporary)
        trusted = bool(whole) or (trust == digest and trust is not None)
        if not trusted and inner not in {e.sha256 for e in siblings} and trust != inner:
            raise unknown_digest(path.name, digest, siblings, trust)
        if whole and entry.sha256 is not None and inner != entry.sha256:
            raise unknown_digest(name, inner, [entry])
    return Located(entry, inner, teacher_folder(entry.name, cache) / name, unpacked=True)


def _only_checkpoint(archive: zipfile.ZipFile, entry: Checkpoint, path: Path) -> zipfile.ZipInfo:
    names = [info for info in archive.infolist() if not info.is_dir()]
    exact = [info for info in names if info.filename == entry.member]
    if exact:
        return exact[0]
    suffixes = (*safe_load.TORCH_SUFFIXES, ".safetensors")
    found = [info for info in names if Path(info.filename).suffix in suffixes]
    if len(found) != 1:
        got = ", ".join(info.filename for info in found[:6]) or "none"
        raise WeightsError(
            f"{path.name} does not hold one checkpoint", expected=entry.member or "one file", got=got
        )
    return found[0]


def _locate_cached(entry: Checkpoint, trust: str | None, cache: Path | None) -> Located:
    folder = teacher_folder(entry.name, cache)
    for digest in filter(None, (trust, entry.sha256, fetched_digest(entry, cache))):
        if converted.converted_path(folder, digest).is_file():
            return Located(entry, digest, None)
    if entry.archive is not None and (folder / entry.archive).is_file():
        return locate_file(entry, folder / entry.archive, trust, cache)
    for name in (entry.file, *entry.files):
        if name and (folder / name).is_file():
            return locate_file(entry, folder / name, trust or fetched_digest(entry, cache), cache)
    raise absent(entry, cache)


def fetched_digest(entry: Checkpoint, cache: Path | None = None) -> str | None:
    """Return the digest of the file that ``ossicle fetch teacher`` put there, verified or trusted then."""
    path = teacher_folder(entry.name, cache) / SOURCE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read", got=str(error), run=f"remove it, then {entry.fetch_command}"
        ) from error


def note_fetched(found: Located, source: str, cache: Path | None = None) -> None:
    """Record which file ``found`` came from, so that later loads take it without being told again."""
    record = {"sha256": found.sha256, "source": source, "known": found.checkpoint.sha256 == found.sha256}
    write_json(teacher_folder(found.checkpoint.name, cache) / SOURCE, record)


def is_present(entry: Checkpoint, cache: Path | None = None) -> bool:
    """Whether the cache holds the checkpoint (verified when it is loaded)."""
    folder = teacher_folder(entry.name, cache)
    names = [entry.archive, entry.file, *entry.files]
    digests = (entry.sha256, fetched_digest(entry, cache))
    return any(name and (folder / name).is_file() for name in names) or any(
        digest and converted.converted_path(folder, digest).is_file() for digest in digests
    )


def absent(entry: Checkpoint, cache: Path | None = None) -> WeightsError:
    """Return what to tell a user whose cache lacks ``entry``: which file, from whom, its licence, where to put it."""
    files = " or ".join(filter(None, (entry.file, *entry.files)))
    digest = f", SHA-256 {entry.sha256}" if entry.sha256 else ", SHA-256 not known here"
    folder = teacher_folder(entry.name, cache)
    return WeightsError(
        f"the weights of teacher {entry.name!r} are not there",
        expected=f"{files}{digest}, from {entry.published_at} (licence: {entry.licence}), as {folder / files}"
        if not entry.requirement
        else f"{entry.archive} in {folder} (licence: {entry.licence}), from {entry.published_at}",
        run=entry.fetch_command,
    )


def payload_of(found: Located, cache: Path | None = None) -> Any:
    """Return what the checkpoint holds, from its conversion if there is one; else convert it.

    Raises:
        WeightsError: unsafe, damaged, or the conversion is and its source is gone.
    """
    entry = found.checkpoint
    folder = teacher_folder(entry.name, cache)
    payload = converted.read(folder, found.sha256)
    if payload is not None:
        return payload
    if found.path is None:
        found = _source_of(entry, found.sha256, cache)
    assert found.path is not None
    if found.path.suffix == ".safetensors":
        return safe_load.load_payload(found.path, max_bytes=entry.max_bytes)
    convert(found, cache)
    payload = converted.read(folder, found.sha256)
    if payload is None:
        raise WeightsError(
            f"the conversion of {found.path.name} cannot be read back", expected=f"a sound disk at {folder}"
        )
    return payload


def convert(found: Located, cache: Path | None = None) -> Path:
    """Write the safetensors conversion of a verified checkpoint into the cache and return it.

    Raises:
        WeightsError: unsafe or damaged.
    """
    assert found.path is not None
    entry = found.checkpoint
    payload = safe_load.load_payload(
        found.path, allow=entry.allow, stand_ins=entry.stand_ins, max_bytes=entry.max_bytes
    )
    kept = converted.without_training_state(payload)
    path = converted.write(teacher_folder(entry.name, cache), found.sha256, kept, found.path.name)
    if found.unpacked:
        found.path.unlink(missing_ok=True)
    return path


def _source_of(entry: Checkpoint, digest: str, cache: Path | None) -> Located:
    """Return the file that a damaged conversion was made from, where it is still in the cache."""
    folder = teacher_folder(entry.name, cache)
    for name in filter(None, (entry.archive, entry.file, *entry.files)):
        if (folder / name).is_file():
            found = locate_file(entry, folder / name, digest, cache)
            if found.sha256 == digest:
                return found
    raise absent(entry, cache)
