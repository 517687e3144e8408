"""Where a model's cost lies: MACs, parameters, memory and time of every node that runs, in int8 or in float."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.measure.activation import live_bytes
from pipeline.measure.graph_profile import ExecutedGraph, executed_graph
from pipeline.measure.int8_share import node_macs, runs_in_int8

RUNS = 20


@dataclass(frozen=True)
class Layer:
    """One node of the graph that ONNX Runtime runs.

    Attributes:
        index: its place in the order of running.
        name: of the node before ONNX Runtime fused it with its neighbours.
        op: operator type, e.g. ``FusedConv`` or ``QLinearConv``.
        kind: ``int8``, ``float``, or ``conversion`` (QuantizeLinear, DequantizeLinear).
        output_shape: of its first output.
        macs: multiply-accumulates.
        parameters: weights and biases that it holds.
        live_bytes: activations in memory while it runs.
        time_share: of the sum over all nodes: median of ``RUNS`` profiled runs on this x86.
        instructions: executed by it on the emulated processor; None where that was not counted.
        place: in the file of the optimised graph, by which instructions are counted.
    """

    index: int
    name: str
    op: str
    kind: str
    output_shape: tuple[int, ...]
    macs: int
    parameters: int
    live_bytes: int
    time_share: float
    instructions: int | None = None
    place: int = 0

    @property
    def label(self) -> str:
        """Operator and output shape in a few characters."""
        return f"{self.index} {self.op} {'x'.join(str(size) for size in self.output_shape[1:])}"


def layers(model: Path, value: np.ndarray, *, runs: int = RUNS) -> list[Layer]:
    """Return every node that runs when ``model`` embeds ``value``, in order, int8 as ARM runs it.

    Raises:
        MeasurementError: a node multiplies but no rule counts it.
    """
    return layers_of(executed_graph(model, value, runs=runs))


def layers_of(graph: ExecutedGraph) -> list[Layer]:
    """Return the layers of a profiled graph; see ``layers``."""
    times = [statistics.median(node.microseconds) if node.microseconds else 0.0 for node in graph.nodes]
    total = sum(times) or 1.0
    live = live_bytes(graph)
    return [
        Layer(
            index=index,
            name=node.name,
            op=node.op,
            kind="conversion" if node.op in ("QuantizeLinear", "DequantizeLinear")
            else "int8" if runs_in_int8(node) else "float",
            output_shape=node.output_info[0].shape if node.output_info else (),
            macs=node_macs(node),
            parameters=node.parameters,
            live_bytes=live[index],
            time_share=times[index] / total,
            place=node.place,
        )
        for index, node in enumerate(graph.nodes)
    ]  # fmt: skip


def as_json(found: Iterable[Layer]) -> list[dict[str, Any]]:
    """Return plain values for ``layers.json``."""
    return [asdict(layer) for layer in found]


def from_json(rows: Iterable[dict[str, Any]]) -> list[Layer]:
    """Return the layers that ``as_json`` gave."""
    return [Layer(**{**row, "output_shape": tuple(row["output_shape"])}) for row in rows]


def by_operator(found: Sequence[Layer]) -> list[dict[str, Any]]:
    """Return nodes, MACs, parameters, time share and instructions of each operator and kind, costly ones first."""
    groups: dict[tuple[str, str], list[Layer]] = {}
    for layer in found:
        groups.setdefault((layer.op, layer.kind), []).append(layer)
    counted = bool(found) and all(layer.instructions is not None for layer in found)
    rows: list[dict[str, Any]] = [
        {
            "op": op,
            "kind": kind,
            "nodes": len(group),
            "macs": sum(layer.macs for layer in group),
            "parameters": sum(layer.parameters for layer in group),
            "time_share": sum(layer.time_share for layer in group),
            "instructions": sum(layer.instructions or 0 for layer in group) if counted else None,
        }
        for (op, kind), group in groups.items()
    ]
    return sorted(rows, key=lambda row: (-(row["instructions"] or 0), -row["time_share"], row["op"]))


def markdown(found: Sequence[Layer], title: str) -> str:
    """Return a table of all nodes and one of their sums by operator."""
    counted = bool(found) and all(layer.instructions is not None for layer in found)
    total = sum(layer.instructions or 0 for layer in found) or 1
    head = ["layer", "operator", "runs in", "output", "MACs", "parameters", "live KB", "x86 time"]
    rows = [
        [
            str(layer.index), layer.op, layer.kind, "x".join(map(str, layer.output_shape)), f"{layer.macs:,}",
            f"{layer.parameters:,}", f"{layer.live_bytes / 1024:,.1f}", f"{layer.time_share:.1%}",
            *([f"{layer.instructions:,}", f"{(layer.instructions or 0) / total:.1%}"] if counted else []),
        ]
        for layer in found
    ]  # fmt: skip
    sums_head = ["operator", "runs in", "nodes", "MACs", "parameters", "x86 time"]
    sums = [
        [
            row["op"], row["kind"], str(row["nodes"]), f"{row['macs']:,}", f"{row['parameters']:,}",
            f"{row['time_share']:.1%}",
            *([f"{row['instructions']:,}", f"{row['instructions'] / total:.1%}"] if counted else []),
        ]
        for row in by_operator(found)
    ]  # fmt: skip
    more = ["ARM instructions", "share"] if counted else []
    return f"# {title}\n\n{_table(sums_head + more, sums)}\n\n{_table(head + more, rows)}\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    texts = {"layer", "operator", "runs in", "output"}
    rule = ["---" if name in texts else "---:" for name in head]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])
