"""Float islands: modules whose nodes stay in float32 when the rest of a graph becomes int8."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

# Part of the node's name: metadata of nodes is not kept in exported files, nor by ONNX Runtime's optimiser.
MARK = "__float"
# What moves or averages values is as good in int8, and a float island that begins behind it is smaller.
INT8_INSIDE = ("Transpose", "Slice", "Concat", "ReduceMean", "GlobalAveragePool", "Squeeze")
MOVES = ("Unsqueeze", "Split", "Reshape", "Slice")
CLASS_HIERARCHY = "pkg.torch.onnx.class_hierarchy"


def mark_islands(path: Path, classes: Iterable[type]) -> int:
    """Mark the nodes that modules of ``classes`` were exported to, as the exporter wrote the file.

    Returns:
        How many nodes were marked.
    """
    wanted = {f"{one.__module__}.{one.__qualname__}" for one in classes}
    model = onnx.load(str(path))
    marked: set[str] = set()
    for number, node in enumerate(model.graph.node):
        hierarchy = next((p.value for p in node.metadata_props if p.key == CLASS_HIERARCHY), "")
        computes = any(name in hierarchy for name in wanted) and node.op_type not in INT8_INSIDE
        # Nodes that the exporter added have no module.
        if computes or (node.op_type in MOVES and node.input[0] in marked):
            node.name = f"{node.name or node.op_type}_{number}{MARK}"
            marked.update(node.output)
    onnx.save(model, str(path))
    return sum(MARK in node.name for node in model.graph.node)


def islands(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the marked nodes."""
    return [node.name for node in graph.node if MARK in node.name]
