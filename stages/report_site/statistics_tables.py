"""What the evaluation says of a task beside its scores: conditions, retention, few-shot, calibration, spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.report_page.evidence import Evidence
from stages.report_page.palette import PROBES
from stages.report_page.tables import is_number
from stages.report_site import reliability
from stages.report_site.blocks import Block, Section
from stages.report_site.grid import Cell, Column, Grid, number, text
from stages.report_site.subjects import ROLE_WORDS, Subjects

# Heading, key, decimals, and what the value is multiplied with.
Figures = tuple[tuple[str, str, int, float], ...]
INTERVAL: Figures = (("95 % from", "low", 1, 100.0), ("to", "high", 1, 100.0))
TABLES: dict[str, tuple[str, str, tuple[tuple[str, str], ...], Figures]] = {
    "conditions": (
        "Scores by recording condition", "Seen: whether what answered it was fitted on other clips of that condition.",
        (("probe", "probe"), ("condition", "condition"), ("seen", "seen")),
        (("score, %", "score", 1, 100.0), *INTERVAL, ("rows", "rows", 0, 1.0)),
    ),
    "retention": (
        "Share of each teacher's score", "Of the same clips; paired 95 % intervals where there are any.",
        (("probe", "probe"), ("teacher", "teacher")), (("kept, %", "retention", 1, 100.0), *INTERVAL),
    ),
    "few_shot": (
        "Few-shot accuracy", "A handful of clips a class taught, others asked; the same episodes for every model.",
        (("classifier", "classifier"),),
        (("accuracy, %", "accuracy", 1, 100.0), *INTERVAL, ("shots", "shots", 0, 1.0), ("classes", "classes", 0, 1.0),
         ("episodes", "episodes", 0, 1.0)),
    ),
    "calibration": (
        "Calibration of the probes", "How far confidence and accuracy are apart; 0 is best.", (("probe", "probe"),),
        (("expected calibration error, %", "expected_calibration_error", 1, 100.0), ("Brier", "brier", 3, 1.0)),
    ),
}  # fmt: skip


def section(evidence: Evidence, task: str, known: Subjects) -> Section | None:
    """Return the tables of ``task``; None where the evaluation has none of them."""
    scores = evidence.scores or {}
    blocks = []
    for key, (caption, note, words, figures) in TABLES.items():
        rows = [row for stored in scores.get(key, []) if stored["task"] == task for row in _flat(stored)]
        if rows:
            blocks.append(Block(_grid(caption, rows, words, figures, known), note))
        if key == "calibration" and (curves := reliability.figures(evidence, task, known)):
            blocks.append(Block(figures=curves))
    spaces = [row for row in scores.get("geometry", []) if row["task"] == task]
    if spaces:
        blocks.append(Block(_spaces(spaces, known), "Of the same clips, beside every teacher's space."))
    return Section("statistics", "What else was measured", blocks) if blocks else None


def _flat(stored: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row, or each of the rows inside it with what it says of them all."""
    inner = stored.get("rows")
    if not isinstance(inner, list):
        return [dict(stored)]
    return [{**stored, **row} for row in inner]


def _grid(
    caption: str,
    rows: list[dict[str, Any]],
    words: tuple[tuple[str, str], ...],
    figures: Figures,
    known: Subjects,
) -> Grid:
    columns = [Column("model"), Column("role", choice=True)]
    columns += [Column(title, choice=True) for title, _ in words]
    columns += [Column(title, number=True) for title, *_ in figures]
    cells = []
    for row in rows:
        head, href = _model(row["model"], known)
        said = [text(_word(row.get(key), known)) for _, key in words]
        measured = [number(row.get(key), digits, scale=scale, href=href) for _, key, digits, scale in figures]
        cells.append([*head, *said, *measured])
    return Grid(caption, columns, cells)


def _spaces(rows: list[dict[str, Any]], known: Subjects) -> Grid:
    flat = []
    for row in rows:
        own = {"effective rank": row["effective_rank"]}
        own |= {f"hubness, {k.replace('_', ' ')}": v for k, v in row["hubness"].items() if is_number(v)}
        for beside in row["against"] or [{"teacher": ""}]:
            overlaps = {f"overlap@{k}": v for k, v in beside.get("neighbour_overlap", {}).items()}
            others = {k.replace("_", " "): v for k, v in beside.items() if is_number(v)}
            flat.append((row["model"], beside["teacher"], {**overlaps, **others, **own}))
    names = list(dict.fromkeys(name for _, _, found in flat for name in found))
    columns = [Column("model"), Column("role", choice=True), Column("beside", choice=True)]
    columns += [Column(name, number=True) for name in names]
    cells = []
    for model, teacher, found in flat:
        head, href = _model(model, known)
        measured = [number(found.get(name), 3, href=href) for name in names]
        cells.append([*head, text(_word(teacher, known)), *measured])
    return Grid("Geometry of the spaces", columns, cells)


def _model(key: str, known: Subjects) -> tuple[list[Cell], str]:
    made = known.of_model(key)
    role = next(str(m["role"]) for m in made.models if m["key"] == key)
    return [
        text(made.label, href=made.page, role=role),
        text(ROLE_WORDS.get(role, role)),
    ], f"{made.page}#scores"


def _word(value: Any, known: Subjects) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    shown = "" if value is None else str(value)
    return PROBES.get(shown) or known.label_of(shown)
