"""A package as a folder, a .zip or a .tar.gz: the same files give the same bytes, on any day."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from pipeline import artifact
from pipeline.errors import ConfigError

SUMS = "SHA256SUMS"
ARCHIVES = (".zip", ".tar.gz", ".tgz")
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that the format knows
_MODE = 0o644
_OTHER_ARCHIVES = (".tar", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def with_sums(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return ``files`` with ``SHA256SUMS``, which ``sha256sum --check`` reads."""
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return {**files, SUMS: "".join(lines).encode()}


def is_archive(target: Path) -> bool:
    """Whether ``target`` names an archive rather than a folder."""
    return target.name.endswith(ARCHIVES)


def write(files: Mapping[str, bytes], target: Path, name: str) -> None:
    """Write ``files`` to ``target``: an archive by its ending, with one folder ``name`` inside, else a folder.

    Args:
        files: content by path inside the package, ``/`` between folders.
        target: what to write; an archive is replaced, a folder only if it holds an earlier package alone.
        name: of the folder inside an archive.

    Raises:
        ConfigError: the folder holds files that are not of a package.
    """
    if target.name.endswith(".zip"):
        artifact.write_bytes(target, _zipped(files, name))
    elif is_archive(target):
        artifact.write_bytes(target, _tarred(files, name))
    else:
        check_replaceable(target)
        with artifact.replacing(target) as temporary:
            for path, content in files.items():
                artifact.write_bytes(temporary / path, content)


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but a package.

    Raises:
        ConfigError: it does, or it is a file.
    """
    if folder.is_file() or folder.name.endswith(_OTHER_ARCHIVES):
        raise ConfigError(
            "a package is a folder or an archive",
            expected="a folder's name, or a file ending in .zip or .tar.gz", got=folder,
        )  # fmt: skip
    if not folder.is_dir():
        return
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    listed: set[str] = set()
    if (folder / SUMS).is_file():
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
        listed = {SUMS, *(line.partition("  ")[2] for line in lines)}
    foreign = sorted(present - listed)
    if foreign:
        raise ConfigError(
            f"{folder} holds other files, which would be lost", expected="a new folder, or an earlier package",
            got=", ".join(foreign[:4]), run="ossicle package RUN --to ANOTHER_FOLDER",
        )  # fmt: skip


def _zipped(files: Mapping[str, bytes], name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(files):
            entry = zipfile.ZipInfo(f"{name}/{path}", _ZIP_DATE)
            entry.create_system, entry.external_attr = 3, _MODE << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[path], compresslevel=9)
    return buffer.getvalue()


def _tarred(files: Mapping[str, bytes], name: str) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(files):
            entry = tarfile.TarInfo(f"{name}/{path}")
            entry.size, entry.mode, entry.mtime = len(files[path]), _MODE, 0
            archive.addfile(entry, io.BytesIO(files[path]))
    return buffer.getvalue()
