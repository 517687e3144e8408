"""From folders of sound files to manifest rows: which files, and what is known about each without opening it."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.audio.packages import COMPLETE, SOUND_SUFFIXES
from pipeline.errors import ManifestError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may become a clip: where it is and what its source says about it.

    ``split`` is train or validation where the source decides, else "" (drawn by group); ``columns`` are labels
    beside the one in ``label``, by name.
    """

    root: str
    path: str
    source: str
    dataset: str
    group: str
    label: str
    kind: str
    licence: str
    credit: str
    split: str = ""
    fold: int = -1
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """One row of ``data_manifests/sources.csv``."""

    dataset: str
    channel: str
    package: str
    kind: str
    include: re.Pattern[str]
    group: re.Pattern[str] | None
    licence: str
    credit: str
    labels: tuple[tuple[re.Pattern[str], str], ...] = field(default=())


def read_sources(folder: Path) -> list[Source]:
    """Return the sources that ``sources.csv`` lists, each with its label rules of ``labels.csv``.

    Args:
        folder: ``data_manifests``.

    Raises:
        ManifestError: a row lacks a licence or holds an impossible pattern.
    """
    rules: dict[str, list[tuple[re.Pattern[str], str]]] = {}
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rules.setdefault(row["dataset"], []).append(
                (_pattern(row["pattern"], "labels.csv"), row["label"])
            )
    sources = []
    with (folder / "sources.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["licence"]:
                raise ManifestError("sources.csv: a source has no licence", got=row["dataset"])
            group = _pattern(row["group"], "sources.csv") if row["group"] else None
            sources.append(
                Source(
                    row["dataset"],
                    row["channel"],
                    row["package"],
                    row["kind"],
                    _pattern(row["include"], "sources.csv"),
                    group,
                    row["licence"],
                    row["credit"],
                    tuple(rules.get(row["dataset"], ())),
                )
            )
    return sources


def walk(folder: Path) -> Iterator[str]:
    """Yield every file below ``folder``, relative, sorted; links to folders are not followed (they may loop).

    A folder that is named like a sound is yielded too: whoever put it there took it for one.
    """
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        strange = (d for d in folders if Path(parent, d).is_symlink() or has_sound_suffix(d))
        for name in sorted([*files, *strange]):
            yield os.path.relpath(os.path.join(parent, name), folder)  # noqa: PTH118 - keeps undecodable names


def package_candidates(root: str, folder: Path, sources: list[Source]) -> Iterator[Candidate]:
    """Yield the clips of one unpacked package; the first source whose pattern fits a file has it."""
    for path in walk(folder):
        if path == COMPLETE:
            continue
        for source in sources:
            if source.include.search(f"/{path}"):
                yield _candidate(root, path, source)
                break


def folder_candidates(root: str, folder: Path) -> Iterator[Candidate]:
    """Yield every file of a user's folder; its first folder level is its label, each file its own group.

    Files without a sound file's suffix are candidates too: they become rejects with a reason, so that
    nothing a user put there disappears in silence. Hidden files are left out.
    """
    for path in walk(folder):
        parts = Path(path).parts
        if any(part.startswith(".") for part in parts):
            continue
        label = parts[0] if len(parts) > 1 else ""
        yield Candidate(root, path, root, slug(folder.name), path, label, "other", "unknown", "unknown")


def has_sound_suffix(path: str) -> bool:
    """Whether a path looks like a sound file by name alone."""
    return path.lower().endswith(SOUND_SUFFIXES)


def _candidate(root: str, path: str, source: Source) -> Candidate:
    match = source.group.search(f"/{path}") if source.group is not None else None
    group = match["group"] if match is not None else path
    label = next((name for pattern, name in source.labels if pattern.search(f"/{path}")), "")
    return Candidate(
        root, path, source.package, source.dataset, group, label, source.kind, source.licence, source.credit
    )


def _pattern(text: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ManifestError(f"{where}: impossible pattern: {error}", got=text) from error


def slug(name: str) -> str:
    """Return ``name`` as a dataset is called: lower case letters and digits, joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "folder"
