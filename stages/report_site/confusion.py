"""Confusion matrices and what each class scores, where the evaluation kept them."""

from __future__ import annotations

from typing import Any

from stages.report_page.evidence import Evidence
from stages.report_page.palette import PROBES
from stages.report_site.blocks import Block
from stages.report_site.grid import ABSENT, Cell, Column, Grid, number, text

MATRIX = "Rows are the true class, columns what the {probe} probe said; the tint is the share of the row."


def of(
    evidence: Evidence, *, task: str | None = None, models: set[str] | None = None
) -> list[dict[str, Any]]:
    """Return the stored matrices of a task, of some models, or of both."""
    found = (evidence.scores or {}).get("confusions", [])
    return [
        one
        for one in found
        if (task is None or one["task"] == task) and (models is None or one["model"] in models)
    ]


def blocks(stored: dict[str, Any], title: str, page: str) -> list[Block]:
    """Return the matrix and its classes as two tables.

    Args:
        stored: ``classes`` and ``counts`` (true x predicted), ``probe``.
        title: whose they are.
        page: of the run that made them.
    """
    classes, counts = stored["classes"], stored["counts"]
    probe = PROBES.get(stored["probe"], stored["probe"])
    columns = [Column("true class"), *(Column(str(name), number=True) for name in classes)]
    rows = []
    for name, line in zip(classes, counts, strict=True):
        total = sum(line)
        cells = [Cell(f"{n:,}", float(n), share=n / total if total else 0.0) for n in line]
        rows.append([text(name), *cells])
    caption = f"Confusion of {title}, {probe} probe"
    matrix = Grid(caption, columns, rows, searchable=False, sortable=False)
    per_class = []
    for place, name in enumerate(classes):
        hits, present = counts[place][place], sum(counts[place])
        said = sum(line[place] for line in counts)
        wrong = [(n, other) for n, other in zip(counts[place], classes, strict=True) if other != name and n]
        worst = max(wrong, default=None, key=lambda one: one[0])
        per_class.append([
            text(name, href=page), number(present, 0), number(hits / present if present else None, 1, scale=100),
            number(hits / said if said else None, 1, scale=100),
            text(f"{worst[1]} ({worst[0]:,})" if worst else ABSENT),
        ])  # fmt: skip
    headings = [Column("class"), Column("clips", number=True), Column("recall, %", number=True),
                Column("precision, %", number=True), Column("most often taken for")]  # fmt: skip
    table = Grid(f"Classes of {title}, {probe} probe", headings, per_class, searchable=False)
    return [Block(matrix, MATRIX.format(probe=probe)), Block(table)]
