"""``report.png``: the README's picture, drawn on white so that it reads anywhere."""

from __future__ import annotations

import io
import textwrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.report_page import tables
from stages.report_page.evidence import Evidence, Maps
from stages.report_page.palette import CLASSES, COLOURS, INT8, PROBES, RANDOM, STUDENT, TEACHER
from stages.report_page.svg import STYLE

INK, GRID = "#1d2126", "#e4e7eb"


def picture(evidence: Evidence) -> bytes | None:
    """Return a PNG of scores and maps; None where nothing was evaluated."""
    tasks = tables.tasks_of(evidence)
    if not tasks:
        return None
    style = {
        key: INK if value == "#010203" else GRID if value == "#040506" else value
        for key, value in STYLE.items()
    }
    with matplotlib.rc_context({**style, "savefig.facecolor": "white", "figure.facecolor": "white"}):
        maps = evidence.maps[0] if evidence.maps else None
        figure = Figure(figsize=(12.0, 3.9), layout="constrained")
        spaces = maps.spaces[:2] if maps is not None else []
        axes = figure.subplots(1, 1 + len(spaces), width_ratios=[1.7, *([1] * len(spaces))], squeeze=False)[0]
        _bars(axes[0], evidence, tasks)
        if maps is not None:
            for axis, (title, points) in zip(axes[1:], spaces, strict=True):
                _map(axis, maps, title, points)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _bars(axis: Axes, evidence: Evidence, tasks: list[tuple[str, str]]) -> None:
    roles = (RANDOM, STUDENT, INT8, TEACHER)
    names = {RANDOM: "untrained", STUDENT: "student", INT8: "student, int8", TEACHER: "teacher"}
    summary = (evidence.scores or {})["summary"]
    places, labels = [], []
    groups = [(key, title, probe) for key, title in tasks[:3] for probe in PROBES]
    for group, (task, title, probe) in enumerate(groups):
        here = [r for r in summary if (r["task"], r["probe"]) == (task, probe)]
        places.append(group)
        short = textwrap.fill(title, 11, max_lines=2, placeholder="…")
        labels.append(f"{PROBES[probe]}\n{short}")
        for index, role in enumerate(roles):
            name = evidence.headline if role in (STUDENT, INT8) else None
            row = tables.floor_of(evidence, task, probe) if role == RANDOM else tables.find(here, role, name)
            if row is None:
                continue
            place, height = group + (index - 1.5) * 0.21, 100 * row["mean"]
            axis.bar(place, height, 0.19, color=COLOURS[role], label=names[role] if group == 0 else None)
            axis.annotate(
                f"{height:.0f}",
                (place, height),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
            )
    axis.set_xticks(places, labels, fontsize=7)
    axis.set_ylabel("score, %")
    axis.set_ylim(0, 118)
    axis.set_yticks(range(0, 101, 20))
    axis.grid(True, axis="y")
    axis.tick_params(length=3)
    axis.legend(loc="upper left", ncols=4, fontsize=7, handlelength=1.0, columnspacing=0.9)
    axis.set_title("probes on frozen embeddings")


def _map(axis: Axes, maps: Maps, title: str, points: np.ndarray) -> None:
    for index, name in enumerate(sorted(set(maps.labels))):
        chosen = np.array([label == name for label in maps.labels])
        colour = CLASSES[index % len(CLASSES)]
        axis.scatter(points[chosen, 0], points[chosen, 1], s=9, lw=0, alpha=0.85, color=colour)
    axis.set_title(f"t-SNE, {title}", fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)
    axis.spines[:].set_alpha(0.3)
