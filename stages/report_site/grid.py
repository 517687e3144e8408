"""Tables of the site: plain cells that the template lays out and the page's own script sorts and filters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

ABSENT = "–"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what is read.
        value: what it is sorted by; None sorts last.
        href: where it leads.
        below: what stands small below it.
        role: whose colour its dot has.
        share: 0 to 1, how strongly it is tinted (confusion matrices); None for not at all.
    """

    text: str
    value: float | str | None = None
    href: str = ""
    below: str = ""
    role: str = ""
    share: float | None = None

    @property
    def key(self) -> str:
        """What the script sorts by; empty sorts last."""
        return "" if self.value is None else repr(self.value) if isinstance(self.value, float) else self.value


@dataclass(frozen=True)
class Column:
    """A heading; ``number`` aligns and sorts by number, ``choice`` gives it a filter of its values."""

    title: str
    number: bool = False
    choice: bool = False


@dataclass(frozen=True)
class Grid:
    """A table: caption (also its name to a screen reader), columns, rows.

    Attributes:
        searchable: a search box is offered; small tables need none.
        sortable: headings sort; confusion matrices do not.
    """

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    ids: list[str] | None = None
    searchable: bool = True
    sortable: bool = True

    def __post_init__(self) -> None:
        wrong = [len(row) for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"{self.caption}: a row of {wrong[0]} cells under {len(self.columns)} headings")


def text(value: Any, *, href: str = "", below: str = "", role: str = "") -> Cell:
    """Return a cell of words."""
    shown = str(value) if value not in (None, "") else ABSENT
    return Cell(shown, shown if shown != ABSENT else None, href, below, role)


def number(value: Any, digits: int = 1, *, scale: float = 1.0, href: str = "", below: str = "") -> Cell:
    """Return a cell of ``scale * value`` with ``digits`` decimals, a dash where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return Cell(ABSENT)
    shown = f"{scale * value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return Cell(shown, float(scale * value), href, below)
