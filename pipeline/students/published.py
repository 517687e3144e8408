"""Published student checkpoints: ``data_manifests/checkpoints/students/*.toml``, one table a file.

Whose they are, under which licence, and which student each fits. A file that teachers also take is in the
teachers' own tables.
"""

from __future__ import annotations

import functools
from typing import Any

from pydantic import Field

from pipeline.checkpoints.table import CHECKPOINTS, FOLDER, PublishedFile, read_tables


class StudentCheckpoint(PublishedFile):
    """One published checkpoint of a student."""

    student: str = Field(description="name in the registry of students")
    width: float = Field(1.0, gt=0, description="student.width that its channels have")
    options: dict[str, Any] = Field({}, description="student.options that it was trained with")


@functools.cache
def student_checkpoints() -> dict[str, StudentCheckpoint]:
    """Return every table by name.

    Raises:
        ConfigError: a table is wrong, or two have one name.
    """
    return read_tables(sorted((FOLDER / "students").glob("*.toml")), StudentCheckpoint)


def identified(file_name: str, sha256: str) -> tuple[PublishedFile | None, bool]:
    """Return the table of a file and whether its digest is the published one.

    A file of another digest is found by its name, for the licence and the citation alone.
    """
    listed: list[PublishedFile] = [*student_checkpoints().values(), *CHECKPOINTS.values()]
    for entry in listed:
        if entry.sha256 == sha256:
            return entry, True
    for kind in (StudentCheckpoint, PublishedFile):
        named = [entry for entry in listed if isinstance(entry, kind) and file_name in entry.file_names]
        if len(named) == 1:
            return named[0], False
    return None, False


def fitting(student: str) -> list[PublishedFile]:
    """Return every published file that the student called ``student`` can start from."""
    own = [entry for entry in student_checkpoints().values() if entry.student == student]
    files = {file for entry in own for file in entry.file_names}
    shared = [
        entry
        for entry in CHECKPOINTS.values()
        if entry.teacher == student and not files & set(entry.file_names)
    ]
    return [*own, *shared]
