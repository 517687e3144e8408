"""The table of published checkpoints: ``data_manifests/checkpoints/<family>.toml``, one table a file.

Known digests, licences, citations, and where the authors publish each file. Data, so that another
checkpoint of a known network is a few lines and no code.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from pipeline.config import Section
from pipeline.errors import ConfigError, UnknownNameError, near_matches
from pipeline.recipe import DATA_MANIFESTS

FOLDER = DATA_MANIFESTS / "checkpoints"
GIB = 1 << 30

Allowance = Literal["numpy_scalars", "numpy_arrays", "namespace"]


class PublishedFile(Section):
    """What is known of a published checkpoint, whoever takes it."""

    name: str = Field(description="the table's name")
    file: str = Field("", description="file name as published")
    files: tuple[str, ...] = Field((), description="file names, where it is published under several")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of the file, only where truly known"
    )
    licence: str = Field(min_length=1)
    citation: str = Field(min_length=1, description="authors, title, venue, year")
    published_at: str = Field(min_length=1, description="where the authors publish it")
    note: str = ""
    allow: tuple[Allowance, ...] = Field(
        (), description="what its pickle holds besides tensors and plain values"
    )
    stand_ins: tuple[str, ...] = Field(
        (), description="classes its pickle names that are read as plain attributes, never imported"
    )
    max_bytes: int = Field(4 * GIB, gt=0, description="a larger file is refused unread")

    @model_validator(mode="after")
    def _named(self) -> PublishedFile:
        if not self.file and not self.files:
            raise ValueError("give file (or files): the name under which it is published")
        return self

    @property
    def published_name(self) -> str:
        """The (first) file name as published."""
        return self.file or self.files[0]

    @property
    def file_names(self) -> tuple[str, ...]:
        """Every file name under which it is published."""
        return tuple(filter(None, (self.file, *self.files)))


class Checkpoint(PublishedFile):
    """One published checkpoint of a teacher and how to get it."""

    teacher: str = Field(description="name in the registry of teachers")
    requirement: str | None = Field(
        None, description="name==version on PyPI, where the file is inside a wheel"
    )
    archive: str | None = Field(None, description="file name of the wheel or zip that holds the file")
    archive_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    member: str | None = Field(None, description="path of the file inside the archive")

    @model_validator(mode="after")
    def _possible(self) -> Checkpoint:
        if self.requirement and not (self.archive and self.archive_sha256 and self.member):
            raise ValueError("requirement needs archive, archive_sha256 and member")
        return self

    @property
    def fetch_command(self) -> str:
        """The command that brings it into the cache."""
        source = "" if self.requirement else f" --from {self.published_name}"
        return f"ossicle fetch teacher {self.name}{source}"


Listed = TypeVar("Listed", bound=PublishedFile)


@functools.cache
def _table() -> dict[str, Checkpoint]:
    return read(FOLDER)


def read(folder: Path) -> dict[str, Checkpoint]:
    """Return every teacher's checkpoint of ``folder``'s TOML files by name, in the order of files and tables.

    Raises:
        ConfigError: a table is wrong, or two have one name.
    """
    return read_tables(sorted(folder.glob("*.toml")), Checkpoint)


def read_tables(paths: Iterable[Path], kind: type[Listed]) -> dict[str, Listed]:
    """Return every table of the TOML files as ``kind``, by name, in the order of files and tables.

    Raises:
        ConfigError: a table is wrong, or two have one name.
    """
    found: dict[str, Listed] = {}
    for path in paths:
        try:
            tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
            for name, table in tables.items():
                if name in found:
                    raise ConfigError(f"{path.name}: checkpoint {name!r} is listed twice")
                found[name] = kind.model_validate({"name": name, **table})
        except (tomllib.TOMLDecodeError, TypeError) as error:
            raise ConfigError(f"{path} is not a table of checkpoints: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{path.name} [{name}] {key}: {first['msg']}") from error
    return found


# The one table of this process; tests add to it with monkeypatch.setitem.
CHECKPOINTS: dict[str, Checkpoint] = _table()


def known(name: str) -> Checkpoint:
    """Return the checkpoint called ``name``, else the first one of the teacher called ``name``.

    Raises:
        UnknownNameError: there is neither; near matches are listed.
    """
    if name in CHECKPOINTS:
        return CHECKPOINTS[name]
    for entry in CHECKPOINTS.values():
        if entry.teacher == name:
            return entry
    names = {*CHECKPOINTS, *(entry.teacher for entry in CHECKPOINTS.values())}
    raise UnknownNameError(
        f"no checkpoint is known for teacher {name!r}", expected=near_matches(name, names), got=name
    )


def of_teacher(teacher: str) -> list[Checkpoint]:
    """Return every checkpoint of the teacher called ``teacher``, the default one first."""
    return [entry for entry in CHECKPOINTS.values() if entry.teacher == teacher]
