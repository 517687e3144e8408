"""A budget search's figure: score against cost, the Pareto set, what was stopped, and the hand-made students."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.report_page import svg
from stages.report_page.palette import COLOURS, GRID, INK, LABELS, RANDOM, STUDENT, TEACHER
from stages.report_page.tables import ABSENT, Cell, Table

COST_TITLES = {
    "macs": "MACs of one window", "parameters": "parameters", "flash_kb": "file, KB", "ram_kb": "peak activations, KB",
    "arm_instructions_per_second": "ARM instructions for one second of audio",
}  # fmt: skip
METRIC_TITLES = {
    "neighbour_overlap": "neighbour overlap with the teacher", "validation_loss": "validation loss",
    "probe_score": "probe score on development folds", "gap_recovered": "share of the gap recovered",
}  # fmt: skip
DARK, LIGHT = "#1d2126", "#e4e7eb"


@svg.in_style
def search_figure(record: dict[str, Any]) -> Figure:
    """Draw ``search.json``: one panel a cost."""
    return _drawn(record)


def _drawn(record: dict[str, Any]) -> Figure:
    costs = record["costs"]
    figure, axes = svg.new_figure(
        5.6 * len(costs) + (2.0 if len(costs) == 1 else 0), 4.4, 1, len(costs), sharey=True
    )
    for axis, cost in zip(axes[0], costs, strict=True):
        _panel(axis, record, cost)
    axes[0][0].set_ylabel(METRIC_TITLES.get(record["metric"], record["metric"]))
    axes[0][0].legend(loc="best")
    return figure


def picture(record: dict[str, Any], form: str) -> bytes:
    """Return the figure as a file of its own on white, ``png`` or ``svg``."""
    colours = {INK: DARK, GRID: LIGHT}
    style = {
        key: colours.get(value, value) if isinstance(value, str) else value
        for key, value in svg.STYLE.items()
    }
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context({**style, "savefig.facecolor": "white", "svg.hashsalt": "pareto"}):
        _drawn(record).savefig(buffer, format=form, dpi=150, metadata=metadata)
    return buffer.getvalue().replace(INK.encode(), DARK.encode()) if form == "svg" else buffer.getvalue()


def _panel(axis: Axes, record: dict[str, Any], cost: str) -> None:
    svg.tidy(axis, grid="both")
    axis.set_xscale("log")
    axis.set_xlabel(COST_TITLES.get(cost, cost))
    points = [point for point in record["candidates"] if point["score"] is not None]
    groups = (
        ("stopped early", [p for p in points if p["outcome"] == "pruned"], RANDOM, "x", 3.5),
        ("candidate", [p for p in points if p["outcome"] == "done" and not p["member"]], TEACHER, "o", 4.5),
    )
    for label, group, role, marker, size in groups:
        across, up = [p["costs"][cost] for p in group], [p["score"] for p in group]
        axis.plot(across, up, marker, ms=size, color=COLOURS[role], alpha=0.75, lw=0, label=label)
    members = sorted((p for p in points if p["member"]), key=lambda p: (p["costs"][cost], p["score"]))
    across, up = [p["costs"][cost] for p in members], [p["score"] for p in members]
    # With one cost the set is a staircase: between two members nothing better is known.
    style = {"drawstyle": "steps-post", "lw": 1.2} if len(record["costs"]) == 1 else {"lw": 0}
    axis.plot(across, up, "o-", ms=6, color=COLOURS[STUDENT], label="Pareto set", **style)
    for point in members:
        _name(axis, point, cost)
    references = record["references"]
    across, up = [p["costs"][cost] for p in references], [p["score"] for p in references]
    axis.plot(
        across, up, "D", ms=6, color=COLOURS[LABELS], markerfacecolor="none", mew=1.5, label="hand-made"
    )
    for point in references:
        _name(axis, point, cost, below=True)
    if cost in record["limits"]:
        axis.axvline(record["limits"][cost], color=INK, lw=0.8, ls="--", alpha=0.6)


def _name(axis: Axes, point: dict[str, Any], cost: str, below: bool = False) -> None:
    text = point["name"] if below else f"{point['student']} x {point['width']:.2g}"
    place = (5, -11) if below else (5, 4)
    axis.annotate(
        text,
        (point["costs"][cost], point["score"]),
        xytext=place,
        textcoords="offset points",
        fontsize=6.5,
        alpha=0.85,
    )


def search_table(record: dict[str, Any]) -> Table:
    """Return the Pareto set, the cheapest first, and the hand-made students."""
    first, members = record["costs"][0], [point for point in record["candidates"] if point["member"]]
    members.sort(key=lambda point: (point["costs"][first], point["name"]))
    names = list(members[0]["costs"])
    rows = []
    for point in [*members, *record["references"]]:
        beats = [ref["name"] for ref in record["references"] if point["trial"] in ref["beaten_by"]]
        rows.append([
            Cell(point["student"] if point["member"] else point["name"], number=False,
                 colour=COLOURS[STUDENT if point["member"] else LABELS]),
            Cell(f"{point['width']:.3g}"), Cell(f"{point['score']:.3f}"),
            *(Cell(f"{point['costs'][name]:,.0f}") for name in names),
            Cell(", ".join(beats) or ABSENT, number=False),
        ])  # fmt: skip
    titles = [COST_TITLES.get(name, name) for name in names]
    return Table(["student", "width", record["metric"].replace("_", " "), *titles, "beats"], rows)
