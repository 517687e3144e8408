"""What a page is made of; the template lays each kind out."""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup

from stages.report_site.grid import Grid


@dataclass(frozen=True)
class Figure:
    """One picture or several that belong together; ``choices`` (name, value) pick it among others of its group."""

    svg: tuple[Markup, ...]
    caption: str
    kind: str = "plot"
    group: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Sound:
    """One clip to hear: what it is, what the student said, and where the file lies (relative, or a data URI)."""

    title: str
    about: str
    source: str


@dataclass(frozen=True)
class Block:
    """One of: table, figures, a list, sounds, or folded details in plain text."""

    grid: Grid | None = None
    note: str = ""
    figures: tuple[Figure, ...] = ()
    items: tuple[str, ...] = ()
    sounds: tuple[Sound, ...] = ()
    folded: str = ""


@dataclass
class Section:
    """A heading with its blocks."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """One file of the site."""

    file: str
    title: str
    lead: str
    sections: list[Section]
    kicker: str = ""
