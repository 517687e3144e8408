"""The tables of ``ossicle quantise``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

ABSENT = "-"
FIDELITY = ("centred cosine", "neighbour overlap", "probe")


def tables(label: str, result: dict[str, Any]) -> Iterator[Table]:
    """Yield one table for each part of ``quantisation.json``."""
    if "sensitivity" in result:
        yield _layers(label, result["sensitivity"])
    if "methods" in result:
        yield _methods(label, result)
    if "sizes" in result:
        yield _sizes(label, result["sizes"])


def _layers(label: str, found: dict[str, Any]) -> Table:
    whole, left = found["int8"], set(found["plan"]["keep_float"] + found["plan"]["int16"])
    title = f"{label}: each layer in int8 alone, and the int8 file ({_four(whole['centred_cosine'])}) with it in float"
    table = _table(title, ("layer", "operator"))
    for heading in ("k MACs", *FIDELITY, *(f"{name}, spared" for name in FIDELITY), "out of int8"):
        table.add_column(heading, justify="right")
    for layer in found["layers"]:
        table.add_row(
            layer["name"],
            layer["operator"],
            f"{layer['macs'] / 1e3:,.1f}",
            *_fidelity(layer["alone"]),
            *_fidelity(layer["spared"]),
            "yes" if layer["name"] in left else "",
        )
    return table


def _methods(label: str, result: dict[str, Any]) -> Table:
    held_out = f"{result['rows']['held_out']} {result['rows']['held_out_split']} rows"
    table = _table(f"{label}: every layer in int8, {held_out}", ("method",))
    for heading in (*FIDELITY, "KB"):
        table.add_column(heading, justify="right")
    for row in result["methods"]:
        table.add_row(row["method"], *_fidelity(row), f"{row['file_bytes'] / 1024:,.0f}")
    return table


def _sizes(label: str, sizes: list[dict[str, Any]]) -> Table:
    table = _table(f"{label}: weights alone in few bits (sizes; the arithmetic is float32)", ("weights",))
    for heading in ("KB", "of float32", *FIDELITY):
        table.add_column(heading, justify="right")
    for row in sizes:
        table.add_row(
            f"{row['bits']} bits",
            f"{row['file_bytes'] / 1024:,.0f}",
            f"{row['file_bytes'] / row['fp32_bytes']:.0%}",
            *_fidelity(row["fidelity"]),
        )
    return table


def _table(title: str, names: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name)
    return table


def _fidelity(found: dict[str, Any] | None) -> tuple[str, str, str]:
    if found is None:
        return (ABSENT, ABSENT, ABSENT)
    probe = found["probe_score"]
    return (
        _four(found["centred_cosine"]),
        f"{found['neighbour_overlap']:.3f}",
        ABSENT if probe is None else f"{probe:.3f}",
    )


def _four(value: float) -> str:
    return f"{value:.4f}"
