"""The benchmark's figures as a table, and what they say about which file to ship."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.measure.arm_cores import core_name
from pipeline.measure.extra_tables import ExtraTable, cells
from stages.benchmark_models import NOT_FOR_ARM

ABSENT = "-"
WIDTH = 240
ENERGY = "energy not measured: it takes a power meter, and nothing here estimates it"


def text(
    record: dict[str, Any], board: dict[str, Any] | None = None, extra: Sequence[ExtraTable] = ()
) -> str:
    """Return all tables as text at their own width: figures are never cut to fit a narrow terminal or a log."""
    tables = [table(record, board), memory(record), *(further(one) for one in extra)]
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH)
    for one in tables:
        # A title within the table would be folded to the table's width.
        console.print(f"\n {one.title}", markup=False, highlight=False)
        one.title = None
        console.print(one)
    return "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").splitlines())


def table(record: dict[str, Any], board: dict[str, Any] | None = None) -> Table:
    """Return sizes, MACs, times and counts of ``benchmark.json``; ``board`` (``remote.time_on_board``) adds its column.

    "M instr." are executed aarch64 instructions of one inference, counted under emulation: not a time.
    """
    cpus = sorted({cpu for row in record["rows"] for cpu in row.get("arm", {})})
    headings = ["parameters", "M MACs", "int8 MACs", "x86 ms p50 (p10-p95)"]
    headings += [f"{cpu.removeprefix('cortex-').upper()} M instr." for cpu in cpus] + ["ARM = x86"]
    if board is not None:
        headings.append(f"{board['host'].removeprefix('ssh://')} p50 ms")
    shown = _table(f"cost of one window of {record['window_seconds']:.2f} s", headings)
    for row in record["rows"]:
        cells = [
            _number(row.get("parameters"), 1, ",.0f"),
            _number(row.get("macs"), 1e6, ",.2f"),
            ABSENT if row["precision"] == "fp32" else _number(row.get("int8_mac_share"), 0.01, ".0f", "%"),
            _time(row.get("x86", {})),
            *(_number(row.get("arm", {}).get(cpu, {}).get("instructions"), 1e6, ",.2f") for cpu in cpus),
            _agreement(row.get("arm", {})),
        ]
        if board is not None:
            cells.append(_board(board["models"].get(f"{row['model']} {row['precision']}")))
        shown.add_row(row["model"] + (" *" if row["headline"] else ""), row["precision"], *cells)
    return shown


def memory(record: dict[str, Any]) -> Table:
    """Return flash and RAM: what the file and its tensors' lifetimes say, and what a process really took."""
    shown = _table("memory, KB of 1,024 bytes", [
        "flash: weights", "graph", "file", "RAM: live peak", "arena", "process on x86, measured",
    ])  # fmt: skip
    for row in record["rows"]:
        if row["kind"] not in ("student", "frontend"):
            continue
        taken = (row.get("x86", {}).get("memory") or {}).get("delta_bytes")
        shown.add_row(
            row["model"] + (" *" if row["headline"] else ""),
            row["precision"],
            _number(row.get("weight_bytes"), 1024, ",.0f"),
            _number(row.get("graph_bytes"), 1024, ",.0f"),
            _number(row.get("file_kb"), 1, ",.0f"),
            _number(row.get("peak_activation_bytes"), 1024, ",.0f"),
            _number(row.get("arena_bytes"), 1024, ",.0f"),
            _number(taken, 1024, ",.0f"),
        )
    return shown


def further(extra: ExtraTable) -> Table:
    """Return another stage's table; its kind stands in the title."""
    shown = Table(title=f"{extra.title} ({extra.kind})", title_justify="left", box=box.SIMPLE_HEAD)
    for column in extra.columns:
        shown.add_column(column.heading, justify="left" if column.decimals is None else "right")
    for row in extra.rows:
        shown.add_row(*cells(extra, row))
    return shown


def notes(
    record: dict[str, Any],
    board: dict[str, Any] | None = None,
    losses: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Return lines below the tables: which file to ship, what a board said, what could not be measured.

    Args:
        record: of the benchmark.
        board: what a board said.
        losses: model to what its S8S8 file loses of float32 beyond the export's limits: such a file is not shipped,
            however few instructions it executes.
    """
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
                lost = (losses or {}).get(model, ())
                verdict = "ship float32" if ratio >= 1 or lost else "ship int8"
                because = f", for int8 has {', '.join(lost)}" if lost else ""
                lines.append(
                    f"{model} on {cpu}: int8 executes {ratio:.2f} x the instructions of float32: {verdict}{because}"
                )
    absent: dict[str, list[str]] = {}
    for row in record["rows"]:
        for figure, reason in row["not_measured"].items():
            if row["kind"] in ("student", "frontend") and row["precision"] not in NOT_FOR_ARM:
                absent.setdefault(f"{figure} not measured: {reason}", []).append(row["model"])
    lines += [f"{reason} ({', '.join(dict.fromkeys(models))})" for reason, models in absent.items()]
    stands_in = [
        f"{cpu}: {about['about']}"
        for cpu, about in ((record.get("arm") or {}).get("processors") or {}).items()
        if about["model"] != cpu
    ]
    return [*lines, *stands_in, *_board_notes(board), ENERGY]


def _board_notes(board: dict[str, Any] | None) -> list[str]:
    if board is None:
        return []
    lines: list[str] = []
    core = "core"
    for name, measured in board["models"].items():
        processor = measured.get("processor") or {}
        core = core_name(processor)
        if "not_measured" in measured:
            lines.append(f"{name} on {board['host']}: {measured['not_measured']}; no time is shown")
        elif measured.get("warnings"):
            lines.append(f"{name} on {board['host']}: {'; '.join(measured['warnings'])}")
    return [f"{board['host']} is a {core}, ONNX Runtime {board['versions']['onnxruntime']}", *lines]


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


def _time(x86: dict[str, Any]) -> str:
    return f"{x86['p50_ms']:.2f} ({x86['p10_ms']:.2f}-{x86['p95_ms']:.2f})" if x86 else ABSENT


def _table(title: str, headings: Sequence[str]) -> Table:
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("model")
    shown.add_column("file")
    for heading in headings:
        shown.add_column(heading, justify="right")
    return shown
