"""The benchmark's figures as a table, and what they say about which file to ship."""

from __future__ import annotations

import io
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

ABSENT = "-"
WIDTH = 240


def text(record: dict[str, Any], board: dict[str, Any] | None = None) -> str:
    """Return ``table`` as text at its own width: figures are never cut to fit a narrow terminal or a log."""
    stream = io.StringIO()
    Console(file=stream, width=WIDTH).print(table(record, board))
    return stream.getvalue().rstrip()


def table(record: dict[str, Any], board: dict[str, Any] | None = None) -> Table:
    """Return the table of ``benchmark.json``; ``board`` (``remote.time_on_board``) adds its column.

    "M instructions" are executed aarch64 instructions of one inference, counted under emulation: not a time.
    """
    cpus = sorted({cpu for row in record["rows"] for cpu in row.get("arm", {})})
    shown = Table(
        title=f"cost of one window of {record['window_seconds']:.2f} s",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("model")
    shown.add_column("file")
    headings = ["parameters", "M MACs", "peak KB", "file KB", "int8 MACs", "x86 p50 ms", "p10-p95"]
    headings += [f"{cpu.removeprefix('cortex-').upper()} M instr." for cpu in cpus] + ["ARM = x86"]
    if board is not None:
        headings.append(f"{board['host']} p50 ms")
    for heading in headings:
        shown.add_column(heading, justify="right")
    for row in record["rows"]:
        x86 = row.get("x86", {})
        cells = [
            row["model"] + (" *" if row["headline"] else ""),
            row["precision"],
            _number(row.get("parameters"), 1, ",.0f"),
            _number(row.get("macs"), 1e6, ",.2f"),
            _number(row.get("peak_activation_bytes"), 1024, ",.0f"),
            _number(row.get("file_kb"), 1, ",.0f"),
            ABSENT if row["precision"] == "fp32" else _number(row.get("int8_mac_share"), 0.01, ".0f", "%"),
            _number(x86.get("p50_ms"), 1, ".2f"),
            f"{x86['p10_ms']:.2f}-{x86['p95_ms']:.2f}" if x86 else ABSENT,
            *(_number(row.get("arm", {}).get(cpu, {}).get("instructions"), 1e6, ",.2f") for cpu in cpus),
            _agreement(row.get("arm", {})),
        ]
        if board is not None:
            cells.append(_board(board["models"].get(f"{row['model']} {row['precision']}")))
        shown.add_row(*cells)
    return shown


def notes(record: dict[str, Any]) -> list[str]:
    """Return lines below the table: which file to ship, and every figure that could not be measured."""
    lines: list[str] = []
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for row in record["rows"]:
        if row["kind"] == "student":
            for cpu, count in row.get("arm", {}).items():
                counts.setdefault(row["model"], {}).setdefault(cpu, {})[row["precision"]] = count[
                    "instructions"
                ]
    for model, by_cpu in counts.items():
        for cpu, found in by_cpu.items():
            if "fp32" in found and "s8s8" in found:
                ratio = found["s8s8"] / found["fp32"]
                verdict = "ship int8" if ratio < 1 else "ship float32"
                lines.append(
                    f"{model} on {cpu}: int8 executes {ratio:.2f} x the instructions of float32: {verdict}"
                )
    absent: dict[str, list[str]] = {}
    for row in record["rows"]:
        for figure, reason in row["not_measured"].items():
            if row["kind"] in ("student", "frontend") and row["precision"] != "u8s8":
                absent.setdefault(f"{figure} not measured: {reason}", []).append(row["model"])
    lines += [f"{reason} ({', '.join(dict.fromkeys(models))})" for reason, models in absent.items()]
    return lines


def _number(value: float | None, unit: float, form: str, suffix: str = "") -> str:
    return ABSENT if value is None else f"{value / unit:{form}}{suffix}"


def _agreement(counts: dict[str, Any]) -> str:
    """Return how ARM's output compares with x86's: equal bit by bit, or the largest difference."""
    if not counts:
        return ABSENT
    compared = [count["comparison"] for count in counts.values()]
    if all(c["equal"] for c in compared):
        return "bit-equal"
    if not all(c["believable"] for c in compared):
        return "DIFFERS"
    return f"within {max(c['max_abs_difference'] for c in compared):.0e}"


def _board(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return ABSENT
    return "output differs" if "not_measured" in measured else f"{measured['p50_ms']:.2f}"
