"""The report's tables as plain rows; the template only lays them out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.artifact import Artifact
from stages.report_page.evidence import Evidence, RunEvidence
from stages.report_page.figures import role_names
from stages.report_page.palette import COLOURS, INT8, PROBES, RANDOM, STUDENT, TEACHER

ABSENT = "–"


@dataclass(frozen=True)
class Cell:
    """One cell: its text, what stands small below it, where it links, and whether it is a number."""

    text: str
    below: str = ""
    href: str = ""
    number: bool = True
    colour: str = ""


@dataclass(frozen=True)
class Table:
    """Headings and rows; ``groups`` are headings above headings as (text, columns)."""

    headings: list[str]
    rows: list[list[Cell]]
    groups: list[tuple[str, int]] = field(default_factory=list)
    emphasised: frozenset[int] = frozenset()


def anchor(digest: str) -> str:
    """Return the page's anchor of the artifact with ``digest``."""
    return f"made-{digest[:12]}"


def source(*records: Artifact | None) -> Cell:
    """Return a cell that links to what made the row."""
    found = [r for r in records if r is not None]
    if not found:
        return Cell(ABSENT, number=False)
    return Cell(found[0].digest[:8], href=f"#{anchor(found[0].digest)}", number=False)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as per cent without the sign, or a dash."""
    return ABSENT if not is_number(value) else f"{100 * float(value):.{digits}f}"  # type: ignore[arg-type]


def signed(points: float) -> str:
    """Return points with one decimal and a true minus sign."""
    return f"{points:+.1f}".replace("-", "−")


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def gap_table(evidence: Evidence) -> Table | None:
    """Return what the headline student recovers of the gap between an untrained network and the teacher."""
    summary = (evidence.scores or {}).get("summary", [])
    rows = []
    for task, title in tasks_of(evidence):
        for probe, probe_title in PROBES.items():
            here = [r for r in summary if (r["task"], r["probe"]) == (task, probe)]
            student = find(here, STUDENT, evidence.headline)
            if student is None:
                continue
            int8 = find(here, INT8, evidence.headline)
            floor = floor_of(evidence, task, probe)
            teacher = find(here, TEACHER, None)
            lost = int8["mean"] - student["mean"] if int8 else None
            rows.append([
                Cell(title, number=False), Cell(probe_title, number=False),
                _score(floor), _score(student), _score(int8), _score(teacher),
                _share(student), _share(int8),
                Cell(ABSENT if lost is None else signed(100 * lost)),
            ])  # fmt: skip
    if not rows:
        return None
    headings = [
        "task", "probe", "untrained", "student", "its int8", "teacher", "gap recovered", "by int8", "int8 loss",
    ]  # fmt: skip
    return Table(headings, rows)


def scores_table(evidence: Evidence) -> Table | None:
    """Return every model's score, interval and retention on every task under both probes."""
    summary = (evidence.scores or {}).get("summary", [])
    if not summary:
        return None
    tasks = [t for t in tasks_of(evidence) if any(r["task"] == t[0] for r in summary)]
    names = role_names(summary, evidence.headline)
    rows = []
    for (role, name), title in names.items():
        cells = [Cell(title, number=False, colour=COLOURS.get(role, ""))]
        seeds = max(r["seeds"] for r in summary if (r["role"], r["name"]) == (role, name))
        cells.append(Cell(str(seeds) if role not in (TEACHER, "log_mel") else ABSENT))
        for task, _ in tasks:
            for probe in PROBES:
                found = [r for r in summary if (r["task"], r["probe"]) == (task, probe)]
                row = find(found, role, name)
                cells.append(_with_interval(row))
        cells.append(_source_of(evidence, role, name))
        rows.append(cells)
    emphasised = _emphasised(evidence, list(names))
    groups = [("", 2), *((title, len(PROBES)) for _, title in tasks), ("", 1)]
    return Table(
        ["model", "seeds", *(list(PROBES.values()) * len(tasks)), "made by"], rows, groups, emphasised
    )


def floor_of(evidence: Evidence, task: str, probe: str) -> dict[str, Any] | None:
    """Return mean and spread of the untrained networks that are the headline student's floor."""
    rows = [r for r in (evidence.scores or {}).get("rows", []) if (r["task"], r["probe"]) == (task, probe)]
    student = find(rows, STUDENT, evidence.headline)
    values = [r["score"] for r in rows if student and r["role"] == RANDOM and r["floor"] == student["floor"]]
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread, "seeds": len(values)}


def structure_table(evidence: Evidence) -> Table | None:
    """Return how alike each model's space is to the teacher's, and how many directions it uses."""
    found = (evidence.scores or {}).get("structure", [])
    if not found:
        return None
    names = role_names(found, evidence.headline)
    widths = {model["key"]: model["dim"] for model in (evidence.scores or {})["models"]}
    scored = [key for key, _ in tasks_of(evidence)]
    tasks = [*scored, *dict.fromkeys(row["task"] for row in found if row["task"] not in scored)]
    rows = []
    for (role, name), title in names.items():
        cells = [Cell(title, number=False, colour=COLOURS.get(role, ""))]
        of_model = [row for row in found if (row["role"], row["name"]) == (role, name)]
        for task in tasks:
            here = [row for row in of_model if row["task"] == task]
            for figure, digits in (("neighbour_overlap", 3), ("linear_cka", 3), ("effective_rank", 1)):
                values = [row[figure] for row in here if is_number(row.get(figure))]
                cells.append(Cell(_plain(statistics.fmean(values) if values else None, digits)))
        cells.append(Cell(str(widths[of_model[0]["model"]])))
        cells.append(_source_of(evidence, role, name))
        rows.append(cells)
    titles = dict(tasks_of(evidence))
    groups = [("", 1), *((titles.get(task, task), 3) for task in tasks), ("", 2)]
    headings = ["model", *(["overlap", "CKA", "rank"] * len(tasks)), "width", "made by"]
    emphasised = _emphasised(evidence, list(names))
    return Table(headings, rows, groups, emphasised)


CONTROLS = {
    "none": "distilled", "random": "untrained", "labels": "labels alone", "teacher_lr": "regression on the teacher",
}  # fmt: skip


def training_table(evidence: Evidence) -> Table | None:
    """Return what each training run ended with."""
    rows = []
    for run in evidence.runs:
        summary = run.record.summary
        rows.append([
            Cell(run.label, number=False),
            Cell(CONTROLS[run.control], number=False),
            Cell(ABSENT if run.control == "teacher_lr" else run.run.recipe.student.name, number=False),
            Cell(_plain(summary.get("steps"), 0)),
            Cell(_plain(summary.get("validation_loss"), 3)),
            Cell(_plain(summary.get("validation_neighbour_overlap"), 3)),
            Cell(_of(summary.get("effective_rank"), summary.get("embedding_dim"))),
            Cell("yes" if summary.get("collapsed") else "no", number=False),
            source(run.record),
        ])  # fmt: skip
    headings = [
        "run", "control", "student", "steps", "validation loss", "neighbour overlap", "effective rank", "collapsed",
        "made by",
    ]  # fmt: skip
    return Table(headings, rows) if rows else None


def export_table(evidence: Evidence) -> Table | None:
    """Return the exported files: sizes, parity with torch, and how close int8 stays."""
    rows = []
    for run in evidence.runs:
        if run.export is None:
            continue
        found, int8 = run.export.summary, run.export.summary.get("int8") or {}
        left = len(int8["kept_float"]) if int8 else None
        rows.append([
            Cell(run.label, number=False),
            Cell(f"{found['fp32_bytes'] / 1024:,.0f}"),
            Cell(f"{int8['file_bytes'] / 1024:,.0f}" if int8 else ABSENT),
            Cell(f"{found['parity_worst_relative']:.0e}"),
            Cell(_plain(int8.get("centred_cosine"), 4), _rows_of(int8)),
            Cell(_plain(int8.get("cosine"), 4)),
            Cell(ABSENT if left is None else str(left),
                 "" if int8.get("ops", "all") == "all" else "only conv, matmul int8"),
            source(run.export),
        ])  # fmt: skip
    headings = [
        "run", "float32 KB", "int8 KB", "ONNX − torch", "int8 centred cosine", "plain cosine",
        "layers left in float", "made by",
    ]  # fmt: skip
    return Table(headings, rows) if rows else None


def data_table(evidence: Evidence) -> Table | None:
    """Return the windows by dataset, with their licences."""
    if not evidence.datasets:
        return None
    rows = [
        [Cell(d["dataset"] or ABSENT, number=False), Cell(d["kind"], number=False), Cell(f"{d['windows']:,}"),
         Cell(d["licence"] or "not stated", number=False)]
        for d in evidence.datasets
    ]  # fmt: skip
    return Table(["dataset", "kind", "windows", "licence"], rows)


def tasks_of(evidence: Evidence) -> list[tuple[str, str]]:
    """Return (key, title) of the tasks that were scored, ESC-10 first, else in the recipe's order."""
    scores = evidence.scores or {}
    titles = {task["name"]: task["title"] for task in scores.get("tasks", [])}
    keys = list(dict.fromkeys(row["task"] for row in scores.get("summary", [])))
    order = [*evidence.recipe.evaluate.tasks, *keys]
    keys.sort(key=lambda key: (key != "esc10", order.index(key)))
    return [(key, short_title(titles.get(key, key))) for key in keys]


def short_title(title: str) -> str:
    """Return a task's title up to its first comma, as headings and sentences want it."""
    return title.split(",")[0]


def find(rows: Sequence[dict[str, Any]], role: str, name: str | None) -> dict[str, Any] | None:
    """Return the row of ``role`` (and ``name``), or None."""
    return next((r for r in rows if r["role"] == role and (name is None or r["name"] == name)), None)


def _emphasised(evidence: Evidence, keys: list[tuple[str, str]]) -> frozenset[int]:
    return frozenset(
        i for i, (role, name) in enumerate(keys) if name == evidence.headline and role in (STUDENT, INT8)
    )


def _score(row: dict[str, Any] | None) -> Cell:
    if row is None:
        return Cell(ABSENT)
    return Cell(f"{percent(row['mean'])} {_plus_minus(row['spread'], 1)}".strip())


def _share(row: dict[str, Any] | None) -> Cell:
    if row is None or not is_number(row["share"]):
        return Cell(ABSENT)
    return Cell(f"{percent(row['share'], 0)} % {_plus_minus(row['share_spread'], 0)}".strip())


def _plus_minus(spread: float | None, digits: int) -> str:
    return f"± {100 * spread:.{digits}f}" if spread is not None and is_number(spread) else ""


def _with_interval(row: dict[str, Any] | None) -> Cell:
    if row is None:
        return Cell(ABSENT)
    below = f"{percent(row['low'], 0)}–{percent(row['high'], 0)}" if is_number(row["low"]) else ""
    if is_number(row["retention"]):
        below += f" · {percent(row['retention'], 0)} %"
    return Cell(percent(row["mean"]), below)


def _source_of(evidence: Evidence, role: str, name: str) -> Cell:
    run = _run_named(evidence, name)
    if role == INT8 and run is not None:
        return source(run.export)
    if role in (STUDENT, "labels", RANDOM) and run is not None:
        return source(run.record)
    return source(evidence.artifacts.get("evaluation"))


def _run_named(evidence: Evidence, name: str) -> RunEvidence | None:
    return next((r for r in evidence.runs if r.run.name == name), None)


def _plain(value: Any, digits: int) -> str:
    return f"{value:,.{digits}f}" if is_number(value) else ABSENT


def _of(value: Any, width: Any) -> str:
    return f"{_plain(value, 1)} of {width}" if is_number(value) and is_number(width) else _plain(value, 1)


def _rows_of(int8: dict[str, Any]) -> str:
    return f"{int8['compared_rows']} {int8['compared_split']} rows" if int8 else ""
