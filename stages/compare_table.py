"""The comparison as one table: for the console, and as plain cells for the page."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

ABSENT = "-"
PROBES = {"knn": "k-NN", "linear": "linear"}


@dataclass(frozen=True)
class Plain:
    """One row a figure, one column a model: ``headings`` begin with the word for figures."""

    headings: list[str]
    rows: list[list[str]]


def plain(record: dict[str, Any]) -> Plain:
    """Return scores with intervals, differences to the first model, agreement and cost, a column a model.

    Costs are of one window: of a forward pass, times the passes that the window takes.
    """
    columns = _score_columns(record)
    cpus = sorted({cpu for cost in record["costs"].values() for cpu in cost.get("arm") or {}})
    with_store, tasks = record["store"] is not None, [task["name"] for task in record["tasks"]]
    with_teacher = [task for task in tasks if any(row["task"] == task for row in record["structure"])]
    with_retention = any(row["retention"] is not None for row in record["scores"])
    headings = ["model", "hears"]
    for task, probe in columns:
        headings += [f"{task} {PROBES[probe]}, % [95 %]", "  less the first [95 %]"]
        headings += ["  kept of the teacher's, %"] * with_retention
    headings += [f"{task} neighbours shared" for task in with_teacher]
    headings += ["store neighbours shared"] * with_store
    headings += ["parameters", "M MACs", "KB", "MACs in int8", "peak KB", "x86 p50 ms", "  frontend ms"]
    for cpu in cpus:
        headings += [f"{cpu.removeprefix('cortex-').upper()} M instructions", "  frontend M instructions"]
    columns_of_models = []
    for model in record["models"]:
        key, cells = model["key"], [model["label"], model["hears"]]
        for task, probe in columns:
            cells += [_score(record, key, task, probe), _difference(record, key, task, probe)]
            cells += [_number(_row(record, key, task, probe)["retention"], 0.01, ".1f")] * with_retention
        for task in with_teacher:
            found = [r for r in record["structure"] if (r["task"], r["model"]) == (task, key)]
            cells.append(f"{found[0]['neighbour_overlap']:.3f}" if found else ABSENT)
        if with_store:
            cells.append(_number(record["store"]["overlap"].get(key), 1, ".3f"))
        columns_of_models.append(cells + _cost_cells(record, key, cpus))
    whole = [list(row) for row in zip(headings, *columns_of_models, strict=True)]
    return Plain(["", *whole[0][1:]], whole[1:])


def text(record: dict[str, Any]) -> str:
    """Return the table as text at its own width: figures are never cut to fit a narrow terminal or a log."""
    shown = plain(record)
    table = Table(title=title(record), title_justify="left", box=box.SIMPLE_HEAD)
    for number, heading in enumerate(shown.headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number, min_width=20)
    for row in shown.rows:
        table.add_row(*row)
    stream = io.StringIO()
    Console(file=stream, width=24 + 34 * len(shown.headings)).print(table)
    return stream.getvalue().rstrip()


def title(record: dict[str, Any]) -> str:
    """Return what the table is of."""
    return (
        f"{len(record['models'])} models; costs of one window of {record['window_seconds']:.2f} s, one thread"
    )


def notes(record: dict[str, Any]) -> list[str]:
    """Return lines below the table: passes of a window, and every figure that was not measured."""
    labels = {model["key"]: model["label"] for model in record["models"]}
    found = []
    for key, cost in record["costs"].items():
        if cost.get("passes", 1) > 1:
            found.append(f"{labels[key]}: a window takes {cost['passes']} passes of {cost['input_shape']}")
        found += [
            f"{labels[key]}: {figure} not measured: {why}" for figure, why in cost["not_measured"].items()
        ]
    if record["store"] is not None:
        for key, why in record["store"]["not_measured"].items():
            found.append(f"{labels[key]}: no overlap on the store: {why}")
    for task in record["tasks"]:
        if task["unusable"]:
            found.append(
                f"{task['name']}: {task['unusable']} clips cannot be decoded, left out of every model"
            )
    return found


def _score_columns(record: dict[str, Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["task"], row["probe"]) for row in record["scores"]))


def _row(record: dict[str, Any], key: str, task: str, probe: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        row for row in record["scores"] if (row["model"], row["task"], row["probe"]) == (key, task, probe)
    )
    return found


def _score(record: dict[str, Any], key: str, task: str, probe: str) -> str:
    row = _row(record, key, task, probe)
    shown = f"{100 * row['score']:.1f}"
    if row["low"] is not None:
        shown += f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return shown


def _difference(record: dict[str, Any], key: str, task: str, probe: str) -> str:
    wanted = (key, record["baseline"], task, probe)
    for row in record["differences"]:
        if (row["model"], row["reference"], row["task"], row["probe"]) == wanted:
            shown = f"{100 * row['difference']:+.1f}"
            if row["low"] is not None:
                shown += f" [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            return f"{shown}*" if row["decided"] else shown
    return ABSENT


def _cost_cells(record: dict[str, Any], key: str, cpus: list[str]) -> list[str]:
    cost, frontend = record["costs"][key], record["frontends"].get(key, {})
    passes = cost.get("passes", 1)
    times = (cost.get("x86") or {}).get("p50_ms")
    macs = cost.get("executed_macs")
    counts: list[float | None] = []
    for cpu in cpus:
        found, before = (
            ((one.get("arm") or {}).get(cpu) or {}).get("instructions") for one in (cost, frontend)
        )
        counts += [None if found is None else found * passes, before]
    return [
        _number(cost.get("parameters"), 1, ",.0f"),
        _number(None if macs is None else macs * passes, 1e6, ",.2f"),
        _number(cost.get("file_kb"), 1, ",.0f"),
        _number(cost.get("int8_mac_share"), 0.01, ".0f", " %"),
        _number(cost.get("peak_activation_bytes"), 1024, ",.0f"),
        _number(None if times is None else times * passes, 1, ",.2f"),
        _number((frontend.get("x86") or {}).get("p50_ms"), 1, ".2f"),
        *(_number(count, 1e6, ",.2f") for count in counts),
    ]


def _number(value: float | None, unit: float, form: str, suffix: str = "") -> str:
    return ABSENT if value is None else f"{value / unit:{form}}{suffix}"
