"""Peak activation memory of a graph, from its tensors' lifetimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.measure.graph_profile import ExecutedGraph, executed_graph

_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}


def peak_activation_bytes(model: Path, value: np.ndarray, *, int8_everywhere: bool = True) -> int:
    """Return the peak activation memory of one inference of ``model`` on ``value``; see ``peak_of``."""
    return peak_of(executed_graph(model, value, int8_everywhere=int8_everywhere))


def peak_of(graph: ExecutedGraph) -> int:
    """Return the largest sum of live tensors, in bytes, over the nodes in the order they run.

    A tensor lives from the node that writes it to the last node that reads it, both included; the graph's
    input lives from the start, its outputs to the end. While a node runs its inputs and outputs are live
    together (no operator works in place). Views (Reshape, Flatten, ...) share their input's memory. Weights
    and constants are not counted, nor is any operator's private scratch memory.
    """
    owner: dict[str, str] = {}
    sizes = {name: info.size_bytes for name, info in graph.inputs.items()}
    first = dict.fromkeys(sizes, 0)
    last = dict.fromkeys(sizes, 0)
    for step, node in enumerate(graph.nodes):
        for name in node.inputs:
            held = owner.get(name, name)
            if held in sizes:
                last[held] = step
        for position, name in enumerate(node.outputs):
            if node.op in _VIEWS:
                owner[name] = owner.get(node.inputs[0], node.inputs[0])
                continue
            sizes[name] = node.output_info[position].size_bytes
            first[name] = last[name] = step
    for name in graph.outputs:
        held = owner.get(name, name)
        if held in sizes:
            last[held] = len(graph.nodes) - 1
    return max(
        (
            sum(sizes[name] for name in sizes if first[name] <= step <= last[name])
            for step in range(len(graph.nodes))
        ),
        default=sum(sizes.values()),
    )
