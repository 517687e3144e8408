"""Reliability curves (Guo et al., 2017): how often a probe is right where it is so sure of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure as Drawing

from stages.report_page.evidence import Evidence
from stages.report_page.palette import COLOURS, PROBES, STUDENT, TEACHER, TITLES
from stages.report_page.svg import as_svg, in_style, new_figure, tidy
from stages.report_site.blocks import Figure
from stages.report_site.subjects import Subjects

CAPTION = (
    "Reliability of the {probe} probe: confidence and share of right answers in each bin of clips. On the diagonal a "
    "probe is as often right as it is sure; below it, it is too sure."
)
SHOWN = (TEACHER, STUDENT)
INCHES = 3.2


def figures(evidence: Evidence, task: str, known: Subjects) -> tuple[Figure, ...]:
    """Return a plot a probe: the teacher's curve and that of the headline's first seed; none where none is stored."""
    keys: dict[str, str] = {}
    for role in SHOWN:
        named = [m for s in known.all for m in s.models if m["role"] == role]
        first = [m for m in named if m["name"] == evidence.headline] or named
        keys |= {m["key"]: role for m in first[:1]}
    stored = [
        row for row in (evidence.scores or {}).get("calibration", [])
        if row["task"] == task and row["model"] in keys and row.get("confidence")
    ]  # fmt: skip
    found = []
    for probe, name in PROBES.items():
        rows = sorted(
            (row for row in stored if row["probe"] == probe), key=lambda row: SHOWN.index(keys[row["model"]])
        )
        if rows:
            caption = CAPTION.format(probe=name)
            told = "; ".join(
                f"{TITLES[keys[row['model']]]}: expected calibration error "
                f"{100 * row['expected_calibration_error']:.1f} %" for row in rows
            )  # fmt: skip
            drawn = draw(rows, [keys[row["model"]] for row in rows])
            svg = as_svg(drawn, f"reliability-{task}-{probe}", f"{caption} {told}.")
            found.append(Figure((Markup(svg),), f"{caption} {told}."))
    return tuple(found)


@in_style
def draw(rows: Sequence[dict[str, Any]], roles: Sequence[str]) -> Drawing:
    """Draw ``accuracy`` over ``confidence`` of each row, and the diagonal."""
    drawing, ((axes,),) = new_figure(INCHES, INCHES)
    axes.plot([0, 1], [0, 1], color="#8a8f98", linewidth=0.8, linestyle="--")
    for row, role in zip(rows, roles, strict=True):
        axes.plot(
            row["confidence"], row["accuracy"], color=COLOURS[role], marker="o", markersize=3, linewidth=1.2,
            label=TITLES[role],
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share right", aspect="equal")
    axes.legend(loc="upper left")
    tidy(axes, grid="both")
    return drawing
