"""Where a store's files are: a local folder, or a prefix of an object store (``s3://bucket/prefix``).

Names are relative, with ``/``. Whatever the place, a file is whole or absent: a local one is renamed into
place, an object appears when its PUT is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from pipeline.artifact import write_bytes
from pipeline.errors import StoreError

# What callers give: a folder, or a URL. (A Path cannot hold a URL: it makes one slash of two.)
Place = Path | str


class Location(Protocol):
    """The files below one folder or prefix."""

    @property
    def folder(self) -> Path:
        """The local folder; StoreError for an object store."""
        ...

    @property
    def remote(self) -> bool:
        """Whether every access is a request over a network."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's content; FileNotFoundError without it."""
        ...

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Yield each file's content in order, None for those that are absent."""
        ...

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, None without it."""
        ...

    def listing(self, prefix: str) -> dict[str, int]:
        """Return name to size in bytes of every file below ``prefix``."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...


class LocalFolder:
    """A folder of this machine's file system, or of one that several machines mount."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(path)
        return path.read_bytes()

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Yield each file's content in order, None for those that are absent."""
        for name in names:
            path = self.folder / name
            yield path.read_bytes() if path.is_file() else None

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, None without it."""
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def listing(self, prefix: str) -> dict[str, int]:
        """Return name to size in bytes of every file below ``prefix``."""
        return {
            file.relative_to(self.folder).as_posix(): file.stat().st_size
            for file in (self.folder / prefix).rglob("*")
            if file.is_file()
        }

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole: under a temporary name, synced, renamed."""
        write_bytes(self.folder / name, content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.folder / name).unlink(missing_ok=True)


def at(place: Place | Location) -> Location:
    """Return the location of a folder or URL.

    Raises:
        StoreError: a URL of another kind than ``s3://``.
        MissingDependencyError: the extra ``s3`` is not installed.
    """
    if not isinstance(place, (str, Path)):
        return place
    if not is_url(place):
        return LocalFolder(Path(place))
    if not str(place).startswith("s3://"):
        raise StoreError("no such kind of place", expected="a folder, or s3://bucket/prefix", got=place)
    from pipeline.store.object_store import ObjectPrefix

    return ObjectPrefix(str(place))


def is_url(place: Place) -> bool:
    """Whether ``place`` is a URL and no folder."""
    return isinstance(place, str) and "://" in place


def below(place: Place, *names: str) -> Place:
    """Return the place of ``names`` inside ``place``."""
    if is_url(place):
        return "/".join([str(place).rstrip("/"), *names])
    return Path(place).joinpath(*names)
