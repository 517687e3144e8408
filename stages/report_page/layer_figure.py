"""One model's layers as bars: where its MACs, its time or instructions, and its memory lie."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from pipeline.measure.layers import Layer
from stages.report_page.palette import COLOURS, GRID, INK, INT8, RANDOM, STUDENT
from stages.report_page.svg import STYLE, in_style, new_figure, tidy

SHOWN = 40
OTHERS = "#c3c8d0"
KINDS = {"float": COLOURS[STUDENT], "int8": COLOURS[INT8], "conversion": COLOURS[RANDOM]}


@in_style
def layer_figure(layers: Sequence[Layer], title: str) -> Figure:
    """Return bars in the order of running: share of MACs, of instructions (or x86 time), and live memory.

    Of a graph with more than ``SHOWN`` nodes the costliest are drawn and the others summed in the last bar.
    """
    counted = all(layer.instructions is not None for layer in layers)
    total = sum(layer.instructions or 0 for layer in layers) or 1
    cost = [(layer.instructions or 0) / total if counted else layer.time_share for layer in layers]
    chosen = sorted(sorted(range(len(layers)), key=lambda i: -cost[i])[:SHOWN])
    left = [i for i in range(len(layers)) if i not in set(chosen)]
    macs = sum(layer.macs for layer in layers) or 1
    rows = [
        (layers[i].label, KINDS[layers[i].kind], layers[i].macs / macs, cost[i], layers[i].live_bytes / 1024)
        for i in chosen
    ]
    if left:
        sums = (sum(layers[i].macs for i in left) / macs, sum(cost[i] for i in left))
        rows.append((f"{len(left)} others", OTHERS, *sums, 0.0))
    figure, axes = new_figure(8.4, 1.3 + 0.17 * len(rows), columns=3, sharey=True)
    headings = ("MACs, %", "executed ARM instructions, %" if counted else "time on x86, %", "live memory, KB")
    for column, (axis, heading) in enumerate(zip(axes[0], headings, strict=True)):
        values = [row[2 + column] * (1 if column == 2 else 100) for row in rows]
        axis.barh(range(len(rows)), values, color=[row[1] for row in rows], height=0.72)
        axis.set_title(heading)
        tidy(axis, grid="x")
    axes[0][0].set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=7.0)
    axes[0][0].invert_yaxis()
    present = [kind for kind in KINDS if any(layer.kind == kind for layer in layers)]
    handles = [matplotlib.patches.Patch(color=KINDS[kind], label=kind) for kind in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)
    return figure


def standalone_svg(figure: Figure, name: str) -> bytes:
    """Return ``figure`` as a file of its own, on white."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name, "savefig.facecolor": "white"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace(INK, "#1c1f24").replace(GRID, "#dfe3e8").encode()
