"""The comparison as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import MissingDependencyError
from stages import compare_table
from stages.compare_table import PROBES

HERE = Path(__file__).parent
STYLE = HERE / "report_page" / "page.css"
TEMPLATE = "compare_page.html.j2"


def render(record: dict[str, Any]) -> str:
    """Return the page of one ``compare.json``.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingDependencyError("the page needs jinja2", run="pip install 'ossicle[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    labels = {model["key"]: model["label"] for model in record["models"]}
    drawn = _figure(record, labels)
    return environment.get_template(TEMPLATE).render(
        css=Markup(STYLE.read_text(encoding="utf-8")),
        title=" / ".join(labels.values()),
        caption=compare_table.title(record),
        table=compare_table.plain(record),
        figure=None if drawn is None else Markup(drawn),
        pairs=_pairs(record, labels),
        models=record["models"],
        notes=compare_table.notes(record),
        tasks=record["tasks"],
        store=record["store"],
        machine=record["machine"].get("name") or record["machine"].get("machine"),
        provenance=record["provenance"],
    )


def _pairs(record: dict[str, Any], labels: dict[str, str]) -> list[list[str]]:
    rows = []
    for row in record["differences"]:
        interval = "-"
        if row["low"] is not None:
            interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        rows.append([
            row["task"], PROBES[row["probe"]], labels[row["model"]], labels[row["reference"]],
            f"{100 * row['difference']:+.1f}", interval, "yes" if row["decided"] else "no",
        ])  # fmt: skip
    return rows


def _figure(record: dict[str, Any], labels: dict[str, str]) -> str | None:
    """Return the first task's scores against MACs as SVG; None where either is missing."""
    if not record["scores"]:
        return None
    try:
        from stages.report_page.svg import as_svg, in_style, new_figure, tidy
    except ImportError as error:
        raise MissingDependencyError(
            "the page's figure needs matplotlib", run="pip install 'ossicle[report]'"
        ) from error
    task, probe = record["scores"][0]["task"], record["scores"][-1]["probe"]
    points = []
    for row in record["scores"]:
        cost = record["costs"][row["model"]]
        if (row["task"], row["probe"]) == (task, probe) and cost.get("executed_macs"):
            points.append((cost["executed_macs"] * cost.get("passes", 1) / 1e6, row))
    if len(points) < 2:
        return None

    @in_style
    def draw() -> Any:
        figure, axes = new_figure(7.6, 4.0)
        axis = axes[0][0]
        tidy(axis, grid="both")
        axis.set_xscale("log")
        for number, (macs, row) in enumerate(points):
            score = 100 * row["score"]
            if row["low"] is not None:
                bounds = [[max(0.0, score - 100 * row["low"])], [max(0.0, 100 * row["high"] - score)]]
                axis.errorbar(macs, score, yerr=bounds, fmt="o", ms=6, color=f"C{number}", capsize=3, lw=1.2)
            else:
                axis.plot(macs, score, "o", ms=6, color=f"C{number}")
            axis.annotate(labels[row["model"]], (macs, score), xytext=(8, 4), textcoords="offset points")
        axis.set_xlabel("million MACs a window")
        axis.set_ylabel(f"{task}, {PROBES[probe]}, %")
        low, high = axis.get_xlim()
        axis.set_xlim(low / 1.3, high * 2.0)
        return figure

    return as_svg(draw(), "compare", f"Score on {task} against MACs, with 95 % intervals")
