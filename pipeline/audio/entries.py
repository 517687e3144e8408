"""What an input knows of a clip before it is opened, and which paths it may name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.audio.clip_source import file_of
from pipeline.errors import ManifestError
from pipeline.input_config import SplitUse

LABEL_SEPARATOR = ";"  # of a clip's several labels; no published class name or AudioSet mid holds it


@dataclass(frozen=True, slots=True)
class Entry:
    """One clip as an input lists it.

    Attributes:
        path: relative to the input's root; ``pack.hdf5#row`` in a pack.
        label: its label; several are joined by ``LABEL_SEPARATOR``.
        group: recording, performer or place that a split must not cut; "" = the clip itself.
        split: the dataset's own split, "" where it has none.
        fold: the dataset's own fold, or -1.
        kind: what it holds, of ``pipeline.manifest.KINDS``.
        licence: of this clip.
        credit: whom to name.
        dataset: where one input holds several; "" = the input's.
        columns: every label that the dataset gives the clip, by column name.
        reason: why it is left out before it is opened ("missing"), or "".
        problem: the same in words.
    """

    path: str
    label: str = ""
    group: str = ""
    split: str = ""
    fold: int = -1
    kind: str = "other"
    licence: str = "unknown"
    credit: str = "unknown"
    dataset: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Listing:
    """What one input holds.

    Attributes:
        root: folder that the entries' paths are relative to.
        dataset: the input's own name for itself; the recipe may give another.
        entries: its clips.
        splits: use of each official split where the recipe says nothing; others are drawn.
    """

    root: Path
    dataset: str
    entries: Iterable[Entry]
    splits: Mapping[str, SplitUse] = field(default_factory=dict)


class Confinement:
    """Refuses every path that leaves its root: ``..``, absolute, or through a symbolic link.

    Args:
        root: the folder; it may be a link itself.
        follow_links: accept links that lead out (the user's own).
        where: what named the paths, for messages.

    Raises:
        ManifestError: ``root`` is no folder.
    """

    def __init__(self, root: Path, *, follow_links: bool, where: str) -> None:
        if not root.is_dir():
            raise ManifestError(f"{where}: its root is no folder", expected="a folder", got=root)
        self.root, self.follow_links, self.where = root, follow_links, where
        self._real = os.path.realpath(root)
        self._parents: dict[str, str] = {}

    def relative(self, path: str, row: object = "") -> str:
        """Return ``path`` relative to the root; an absolute path inside it is accepted.

        Raises:
            ManifestError: it is empty or leaves the root; ``row`` is named.
        """
        place = f"{self.where}{f', row {row}' if row != '' else ''}"
        if not path or "\0" in path:
            raise ManifestError(f"{place}: a row without a usable path", got=repr(path))
        if ".." in Path(path).parts:
            raise ManifestError(f"{place}: a path with '..'", expected=f"a path below {self.root}", got=path)
        if Path(path).is_absolute():
            if not Path(path).is_relative_to(self.root):
                raise ManifestError(
                    f"{place}: an absolute path outside the root", expected=f"below {self.root}", got=path
                )
            path = str(Path(path).relative_to(self.root))
        if not self.follow_links:
            self._refuse_escape(path, place)
        return path

    def _refuse_escape(self, path: str, place: str) -> None:
        file = self.root / file_of(path)
        parent = str(file.parent)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        real = self._parents[parent]
        if file.is_symlink():
            real = os.path.realpath(file)
        if os.path.commonpath([self._real, real]) != self._real:
            raise ManifestError(
                f"{place}: a symbolic link leads out of the root",
                expected=f"a file below {self.root}", got=f"{path} -> {real}",
                run="follow_links = true for this input, if the link is your own",
            )  # fmt: skip
