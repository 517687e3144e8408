"""The report's figures: scores with intervals, cost against size, loss curves, instructions, spectrograms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stages.report_page.evidence import Maps, RunEvidence, Sample
from stages.report_page.palette import CLASSES, COLOURS, INK, PROBES, TITLES, role_order
from stages.report_page.svg import in_style, new_figure, tidy

MARKERS = {"knn": "o", "linear": "s"}


@in_style
def scores_figure(
    rows: Sequence[dict[str, Any]], tasks: Sequence[tuple[str, str]], names: dict[tuple[str, str], str]
) -> Figure:
    """Draw every model's score with its interval, one panel a task.

    Args:
        rows: summary rows (task, probe, role, name, mean, low, high).
        tasks: (key, title) in order.
        names: (role, name) to the label on the axis, in order from the top.
    """
    places = {key: len(names) - 1 - index for index, key in enumerate(names)}
    figure, axes = new_figure(10.4, 0.9 + 0.36 * len(names), 1, len(tasks), sharey=True)
    for axis, (task, title) in zip(axes[0], tasks, strict=True):
        tidy(axis, grid="x")
        for row in rows:
            if row["task"] != task or (row["role"], row["name"]) not in places:
                continue
            offset = 0.14 if row["probe"] == "knn" else -0.14
            height = places[row["role"], row["name"]] + offset
            colour = COLOURS[row["role"]]
            if _is_number(row["low"]) and _is_number(row["high"]):
                axis.plot(
                    [100 * row["low"], 100 * row["high"]], [height] * 2, color=colour, lw=1.4, alpha=0.55
                )
            filled = colour if row["probe"] == "knn" else "none"
            axis.plot(
                100 * row["mean"],
                height,
                MARKERS[row["probe"]],
                ms=5.5,
                color=colour,
                markerfacecolor=filled,
                mew=1.4,
            )
        axis.set_title(title)
        axis.set_xlabel("score, %")
        axis.set_yticks(list(places.values()), list(names.values()))
        axis.set_ylim(-0.6, len(names) - 0.4)
    for probe, marker in MARKERS.items():
        face = INK if probe == "knn" else "none"
        axes[0][0].plot([], [], marker, color=INK, markerfacecolor=face, ms=5, label=PROBES[probe])
    figure.legend(loc="outside lower right", ncols=2)
    return figure


@in_style
def cost_figure(points: Sequence[dict[str, Any]]) -> Figure:
    """Draw FLOPs against parameters, log axes: the network alone, and with its frontend.

    Args:
        points: name, role, parameters, flops (network alone) and full_flops (with its frontend; may be None).
    """
    figure, axes = new_figure(7.6, 4.3)
    axis = axes[0][0]
    tidy(axis, grid="both")
    axis.set_xscale("log")
    axis.set_yscale("log")
    for point in points:
        colour = COLOURS[point["role"]]
        across, full = point["parameters"], point["full_flops"]
        if full is not None:
            axis.plot([across, across], [point["flops"], full], color=colour, lw=1, alpha=0.6, zorder=2)
            axis.plot(across, full, "o", ms=7, color=colour, markerfacecolor="none", mew=1.4, zorder=3)
        axis.plot(across, point["flops"], "o", ms=7, color=colour, zorder=3)
        axis.annotate(
            point["name"], (across, point["flops"]), xytext=(8, -3), textcoords="offset points", fontsize=8.5
        )
    axis.plot([], [], "o", color=INK, ms=6, label="backbone")
    axis.plot([], [], "o", color=INK, ms=6, markerfacecolor="none", label="full model: with its frontend")
    axis.set_xlabel("parameters")
    axis.set_ylabel("FLOPs a window (1 MAC = 2 FLOPs)")
    low, high = axis.get_xlim()
    axis.set_xlim(low / 1.3, high * 2.2)
    axis.legend(loc="upper left")
    return figure


@in_style
def map_figure(maps: Maps, width: float = 10.4) -> Figure:
    """Draw (clips, 2) maps side by side, the same clips in the same colours."""
    classes = sorted(set(maps.labels))
    count = len(maps.spaces)
    figure, axes = new_figure(width, (width - 1.5) / max(count, 2), 1, count)
    for axis, (title, points) in zip(axes[0], maps.spaces, strict=True):
        for index, name in enumerate(classes):
            chosen = np.array([label == name for label in maps.labels])
            axis.scatter(
                points[chosen, 0], points[chosen, 1], s=11, lw=0, alpha=0.85,
                color=CLASSES[index % len(CLASSES)], marker="os^Dv"[index // len(CLASSES) % 5],
                label=name if axis is axes[0][0] else None,
            )  # fmt: skip
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(True)
        axis.spines[:].set_alpha(0.3)
    figure.legend(loc="outside right center", markerscale=1.6, handletextpad=0.2)
    return figure


@in_style
def loss_figure(runs: Sequence[RunEvidence]) -> Figure:
    """Draw training and validation loss against steps, one small panel a run, each with its own scale."""
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    figure, axes = new_figure(10.4, 2.1 * rows + 0.2, rows, columns)
    for axis, run in zip(axes.flat, runs, strict=False):
        tidy(axis, grid="y")
        colour = COLOURS["labels" if run.control == "labels" else "student"]
        axis.plot(*run.curve("loss"), color=colour, lw=1.0, alpha=0.8, label="training")
        axis.plot(*run.curve("validation_loss"), color=INK, lw=1.2, marker="o", ms=2.5, label="validation")
        axis.set_title(run.label)
    for axis in axes.flat[len(runs) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for row in axes:
        row[0].set_ylabel("loss")
    axes[0][0].legend(loc="upper right")
    return figure


@in_style
def instruction_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw executed aarch64 instructions a window: bars a model, float32 beside int8, one panel a CPU.

    Args:
        rows: model, precision (fp32 or s8s8), cpu, instructions.
    """
    cpus = sorted({row["cpu"] for row in rows})
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = new_figure(10.4, 0.9 + 0.5 * len(models), 1, len(cpus), sharey=True, sharex=True)
    colours = {"fp32": COLOURS["student"], "s8s8": COLOURS["int8"]}
    for axis, cpu in zip(axes[0], cpus, strict=True):
        tidy(axis, grid="x")
        for row in rows:
            if row["cpu"] == cpu:
                place = (
                    len(models)
                    - 1
                    - models.index(row["model"])
                    + (0.19 if row["precision"] == "fp32" else -0.19)
                )
                millions = row["instructions"] / 1e6
                axis.barh(place, millions, 0.34, color=colours[row["precision"]])
                axis.annotate(
                    f"{millions:,.1f}", (millions, place), xytext=(3, 0), textcoords="offset points", va="center",
                    fontsize=8,
                )  # fmt: skip
        axis.set_title(cpu)
        axis.set_yticks(range(len(models)), models[::-1])
        axis.set_xlabel("million instructions")
        axis.margins(x=0.12)
    handles = [axes[0][0].barh([0], [0], color=colour) for colour in colours.values()]
    figure.legend(handles, ["float32", "int8 (S8S8)"], loc="outside lower right", ncols=2)
    return figure


@in_style
def spectrogram_figure(samples: Sequence[Sample]) -> Figure:
    """Draw log-mels as the students hear them, all on one colour scale."""
    columns = min(4, len(samples))
    rows = -(-len(samples) // columns)
    figure, axes = new_figure(10.4, 1.75 * rows + 0.2, rows, columns, sharex=True, sharey=True)
    low = min(float(np.percentile(s.log_mel, 1)) for s in samples)
    high = max(float(np.percentile(s.log_mel, 99.9)) for s in samples)
    for axis, sample in zip(axes.flat, samples, strict=False):
        axis.imshow(
            sample.log_mel, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, interpolation="nearest",
            extent=(0.0, sample.seconds, 0.0, float(len(sample.log_mel))),
        )  # fmt: skip
        axis.set_title(sample.title, fontsize=8.5)
        axis.tick_params(length=2, labelsize=8)
    for axis in axes.flat[len(samples) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    for row in axes:
        row[0].set_ylabel("mel band")
    return figure


def role_names(rows: Sequence[dict[str, Any]], headline: str | None) -> dict[tuple[str, str], str]:
    """Return (role, name) to a short title in the order of tables: the headline student before the others."""
    found = {(row["role"], row["name"]) for row in rows}

    def order(key: tuple[str, str]) -> tuple[Any, ...]:
        role, name = key
        group = 0 if role == "teacher" else 1 if role in ("student", "int8") else 2
        return (
            group,
            name != headline if group == 1 else False,
            name if group == 1 else "",
            role_order(role),
            name,
        )

    titles = {}
    for role, name in sorted(found, key=order):
        titles[role, name] = {
            "teacher": f"{name}, teacher",
            "student": f"{name}, float32",
            "int8": f"{name}, int8",
            "labels": f"{name}: labels alone",
            "random": f"untrained {network_of(name)}".strip(),
            "log_mel": "log-mel " + name.replace("_", " + "),
        }.get(role, f"{name}, {TITLES.get(role, role)}")
    return titles


def network_of(floor: str) -> str:
    """Return the network in the name of a floor (``random_cnn4_w1-ab12cd``); nothing for a run called random."""
    found = re.fullmatch(r"random_(.+)_w([\d.]+)-[0-9a-f]+", floor)
    if found is None:
        return "" if floor == "random" else floor
    return found[1] if found[2] == "1" else f"{found[1]} x {found[2]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))
