"""Activation memory of a graph from its tensors' lifetimes: the least possible, and the arena that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.measure.graph_profile import ExecutedGraph, executed_graph

_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
ALIGNMENT_BYTES = 16


@dataclass(frozen=True)
class Lifetime:
    """One tensor that is written: bytes, and the first and last node (both included) that need it in memory."""

    name: str
    size_bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """Where each tensor lies in one block of memory.

    Attributes:
        size_bytes: the block.
        offsets: tensor name to its first byte.
        busiest: index of the node at which most bytes are live.
    """

    size_bytes: int
    offsets: dict[str, int]
    busiest: int


def peak_activation_bytes(model: Path, value: np.ndarray, *, int8_everywhere: bool = True) -> int:
    """Return the peak activation memory of one inference of ``model`` on ``value``; see ``peak_of``."""
    return peak_of(executed_graph(model, value, int8_everywhere=int8_everywhere))


def lifetimes(graph: ExecutedGraph) -> list[Lifetime]:
    """Return every tensor that holds memory while ``graph`` runs its nodes in order.

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
            last[held] = max(len(graph.nodes) - 1, 0)
    return [Lifetime(name, sizes[name], first[name], last[name]) for name in sizes]


def live_bytes(graph: ExecutedGraph) -> list[int]:
    """Return the bytes that are live at each node."""
    tensors = lifetimes(graph)
    return [
        sum(tensor.size_bytes for tensor in tensors if tensor.first <= step <= tensor.last)
        for step in range(max(len(graph.nodes), 1))
    ]


def peak_of(graph: ExecutedGraph) -> int:
    """Return the largest sum of live tensors, in bytes: what no allocator can go below in this order of nodes."""
    return max(live_bytes(graph))


def arena_of(graph: ExecutedGraph) -> Arena:
    """Return a layout of all tensors in one block, as runtimes on microcontrollers plan it before they start.

    Greedy by size (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020; the
    planner of TensorFlow Lite Micro): the largest tensor first, each at the lowest aligned place that is free for
    its whole life. At least ``peak_of``, more where the tensors do not fit together.
    """
    placed: list[tuple[Lifetime, int]] = []
    for tensor in sorted(lifetimes(graph), key=lambda t: (-t.size_bytes, t.first, t.name)):
        beside = sorted(
            (start, start + other.size_bytes)
            for other, start in placed
            if other.first <= tensor.last and tensor.first <= other.last
        )
        offset = 0
        for start, end in beside:
            if offset + tensor.size_bytes <= start:
                break
            offset = max(offset, -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        placed.append((tensor, offset))
    live = live_bytes(graph)
    return Arena(
        max((start + tensor.size_bytes for tensor, start in placed), default=0),
        {tensor.name: start for tensor, start in placed},
        live.index(max(live)),
    )
