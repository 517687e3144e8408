"""Surgery on the graph of an exported step: which nodes may be int8, and a past that is carried in 8 bits."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.calibrate import TensorsData

from pipeline.deploy.metadata import PREFIX
from pipeline.deploy.onnx_stream import NEXT, PROPERTY, Carried

MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MAPS = ("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Relu")
RANGED_OPS = sorted({*MULTIPLYING, *MAPS})
PAST = ".past"
MAP_RANK = 4


def integer_nodes(model: onnx.ModelProto, ranges: TensorsData, *, all_ops: bool) -> list[str]:
    """Return the names of the nodes that may compute in int8.

    Convolutions and products with constant weights; with ``all_ops`` also sums, products, pools and joins of maps
    (tensors of four axes). Never a node between a running statistic and its next value, and none with a tensor
    that is infinite somewhere (what a maximum has before its first step).

    Args:
        model: the step; nodes have names.
        ranges: of its tensors, as calibrated.
        all_ops: more than convolutions and products.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    rank = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    rank |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    statistics = _between_statistics(graph)
    chosen = []
    for node in graph.node:
        # A product's output is quantised with its inputs; ranges are known of both.
        tensors = [name for name in (*node.input, *node.output) if name and name not in constants]
        finite = all(_finite(ranges, name) for name in tensors if name in ranges.data)
        if node.name in statistics or not finite or not all(name in ranges.data for name in tensors):
            continue
        if node.op_type in MULTIPLYING:
            if node.input[1] in constants:
                chosen.append(node.name)
        elif all_ops and node.op_type in MAPS and all(rank.get(name) == MAP_RANK for name in tensors):
            chosen.append(node.name)
    return chosen


def carry_in_int8(path: Path, fp32: Path) -> dict[str, str]:
    """Rewrite a quantised step so that what is joined before a quantised map is carried in its 8 bits.

    ``past -> Concat -> QuantizeLinear`` becomes ``DequantizeLinear(past) -> Concat``, and the next past is cut from
    the 8-bit map: values are on its grid already, so nothing is lost by carrying them so, and a device keeps a
    quarter of the bytes.

    Args:
        path: the quantised step; rewritten in place where it has such a past.
        fp32: the float step, which says what is carried.

    Returns:
        The property that describes what the file carries, without its prefix.
    """
    source = onnx.load(str(fp32))
    described: dict[str, Any] = json.loads(
        next(p.value for p in source.metadata_props if p.key == f"{PREFIX}{PROPERTY}")
    )
    model = onnx.load(str(path))
    carried = []
    for one in map(Carried.of_json, described["carried"]):
        grid = _grid_of(model.graph, one.name) if one.name.endswith(PAST) else None
        if grid is None or one.initial != 0.0:
            carried.append(one)
            continue
        _carry(model.graph, one.name, grid)
        zero = next(t for t in model.graph.initializer if t.name == grid.input[2])
        value = numpy_helper.to_array(zero)
        carried.append(replace(one, initial=float(value.reshape(-1)[0]), dtype=value.dtype.name))
    _drop_dead(model.graph)
    onnx.save(model, str(path))
    return {PROPERTY: json.dumps({**described, "carried": [one.as_json() for one in carried]})}


def _between_statistics(graph: onnx.GraphProto) -> set[str]:
    """Return the names of nodes on a way from a running statistic to its own next value."""
    outputs = {value.name for value in graph.output}
    layers: dict[str, set[str]] = defaultdict(set)
    for value in graph.input:
        if f"{value.name}{NEXT}" in outputs and not value.name.endswith(PAST):
            layers[value.name.rpartition(".")[0]].add(value.name)
    between = set()
    for states in layers.values():
        # Of one layer at a time: every later layer depends on an earlier one's statistic.
        after, downstream = set(states), set()
        for node in graph.node:
            if after.intersection(node.input):
                after.update(node.output)
                downstream.add(node.name)
        before = {f"{name}{NEXT}" for name in states}
        for node in reversed(graph.node):
            if before.intersection(node.output):
                before.update(node.input)
                if node.name in downstream:
                    between.add(node.name)
    return between


def _finite(ranges: TensorsData, name: str) -> bool:
    low, high = ranges.data[name].range_value
    return bool(np.isfinite(low).all() and np.isfinite(high).all())


def _consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            found[name].append(node)
    return found


def _joined(graph: onnx.GraphProto, past: str) -> onnx.NodeProto | None:
    """Return the Concat that joins ``past`` before new steps, through a Q/DQ pair or without."""
    consumers = _consumers(graph)
    name = past
    while len(consumers[name]) == 1:
        node = consumers[name][0]
        if node.op_type == "Concat":
            return node
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return None
        name = node.output[0]
    return None


def _grid_of(graph: onnx.GraphProto, past: str) -> onnx.NodeProto | None:
    """Return the QuantizeLinear of the map that ``past`` is joined to; None where that stays float."""
    joined = _joined(graph, past)
    if joined is None:
        return None
    after = _consumers(graph)[joined.output[0]]
    grids = [node for node in after if node.op_type == "QuantizeLinear"]
    return grids[0] if len(grids) == 1 else None


def _carry(graph: onnx.GraphProto, past: str, grid: onnx.NodeProto) -> None:
    joined = _joined(graph, past)
    cut = next((node for node in graph.node if f"{past}{NEXT}" in node.output), None)
    assert joined is not None and cut is not None
    while cut.op_type in ("QuantizeLinear", "DequantizeLinear"):
        cut = next(node for node in graph.node if cut.input[0] in node.output)
    kept = numpy_helper.to_array(next(t for t in graph.initializer if t.name == grid.input[2])).dtype
    entry = helper.make_node(
        "DequantizeLinear", [past, *grid.input[1:]], [f"{past}.float"], name=f"{past}.dequantise"
    )
    # Which of the join's inputs leads back to the past: itself, or a Q/DQ pair's output.
    ways = set(_reached(graph, past))
    for position, name in enumerate(joined.input):
        if name in ways:
            joined.input[position] = f"{past}.float"
    for node in [node for node in graph.node if f"{past}{NEXT}" in node.output]:
        graph.node.remove(node)
    slicing = helper.make_node(
        "Slice", [grid.output[0], *cut.input[1:]], [f"{past}{NEXT}"], name=f"{past}.cut"
    )
    # What carries is 8 bits from edge to edge, so the graph's own description must say so too.
    for value in (*graph.input, *graph.output):
        if value.name in (past, f"{past}{NEXT}"):
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(kept)
    graph.node.insert(0, entry)
    graph.node.insert(list(graph.node).index(grid) + 1, slicing)


def _reached(graph: onnx.GraphProto, name: str) -> Iterable[str]:
    consumers = _consumers(graph)
    yield name
    while len(consumers[name]) == 1 and consumers[name][0].op_type in ("QuantizeLinear", "DequantizeLinear"):
        name = consumers[name][0].output[0]
        yield name


def _drop_dead(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that nothing uses any more."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    del graph.value_info[:]
