"""Operators that move numbers and compute none: shapes, slices, joins. Integers pass through them unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema

from pipeline.deploy.tflite.arithmetic import aligned, quantised, without
from pipeline.deploy.tflite.graph import CHANNELS_LAST, Constant, Graph, Value, attributes, unsupported
from pipeline.deploy.tflite.model import Quantisation
from pipeline.deploy.tflite.windows import Window, convolved


def reshape(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Reshape, Flatten, Squeeze and Unsqueeze."""
    value = graph.value(node, 0)
    graph.finish(node, graph.flat(value, _target(graph, node, value.onnx_shape)))


def _target(graph: Graph, node: onnx.NodeProto, shape: tuple[int, ...]) -> tuple[int, ...]:
    given = attributes(node)
    if node.op_type == "Flatten":
        axis = int(given.get("axis", 1)) % (len(shape) + 1)
        return (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
    known = graph.known(node, 1, "axes")
    listed = [] if known is None else [int(number) for number in np.atleast_1d(known)]
    if node.op_type == "Reshape":
        sizes = [
            shape[i] if size == 0 and not given.get("allowzero", 0) else size for i, size in enumerate(listed)
        ]
        if -1 in sizes:
            rest = int(np.prod([size for size in sizes if size != -1]))
            sizes[sizes.index(-1)] = int(np.prod(shape)) // rest
        return tuple(sizes)
    if node.op_type == "Squeeze":
        axes = {axis % len(shape) for axis in listed} or {i for i, size in enumerate(shape) if size == 1}
        return tuple(size for i, size in enumerate(shape) if i not in axes)
    rank = len(shape) + len(listed)
    axes = {axis % rank for axis in listed}
    rest_of = iter(shape)
    return tuple(1 if i in axes else next(rest_of) for i in range(rank))


def transpose(graph: Graph, node: onnx.NodeProto) -> None:
    """Note another order of the same stored axes; nothing is written until an operator wants another."""
    value = graph.value(node, 0)
    moves = list(attributes(node).get("perm", reversed(range(len(value.shape)))))
    order = tuple(moves.index(axis) for axis in value.order)
    graph.finish(node, Value(value.index, value.shape, order, value.quantisation))


def concat(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Concat; operands with other scales become integers of the result's first."""
    values = [graph.value(node, position) for position in range(len(node.input))]
    first = values[0].quantisation
    result = graph.wanted(node.output[0]) or first
    if result is None or any(value.quantisation is None for value in values):
        result = None
        values = [graph.real(value) for value in values]
    else:
        values = [graph.requantised(value, result) for value in values]
    leader = max(values, key=lambda value: int(np.prod(value.shape)))
    values = [graph.ordered(value, leader.order) for value in values]
    axis = leader.axis(int(attributes(node)["axis"]))
    shape = list(leader.shape)
    shape[axis] = sum(value.shape[axis] for value in values)
    made = graph.emit(
        "CONCATENATION",
        values,
        shape,
        quantisation=result,
        order=leader.order,
        name=node.output[0],
        axis=axis,
    )
    graph.finish(node, made)


def split(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Split as SPLIT, or SPLIT_V where the parts differ."""
    value = graph.value(node, 0)
    axis = value.axis(int(attributes(node).get("axis", 0)))
    known = graph.known(node, 1, "split")
    number = len(node.output)
    if known is None:
        part = -(-value.shape[axis] // number)
        sizes = [part] * (number - 1) + [value.shape[axis] - part * (number - 1)]
    else:
        sizes = [int(size) for size in known]
    shapes = [[*value.shape[:axis], size, *value.shape[axis + 1 :]] for size in sizes]
    # The axis is a scalar tensor in both.
    where = graph.integers(np.asarray(axis), "axis")
    if len(set(sizes)) == 1:
        inputs, code = [where, value], "SPLIT"
    else:
        inputs, code = [value, graph.integers(sizes, "sizes"), where], "SPLIT_V"
    made = graph.emit_many(
        code, inputs, shapes, quantisation=value.quantisation, order=value.order, numSplits=number
    )
    for output, part_value in enumerate(made):
        graph.finish(node, part_value, output)


def sliced(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Slice as STRIDED_SLICE."""
    value = graph.value(node, 0)
    parts = [graph.known(node, position) for position in (1, 2, 3, 4)]
    starts, ends = parts[0], parts[1]
    if starts is None or ends is None:
        raise unsupported(node, "no starts or ends")
    axes = range(len(starts)) if parts[2] is None else [int(axis) for axis in parts[2]]
    steps = [1] * len(starts) if parts[3] is None else [int(step) for step in parts[3]]
    begin, end, stride = [0] * len(value.shape), list(value.shape), [1] * len(value.shape)
    for axis, first, last, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise unsupported(node, "a negative step")
        where = value.axis(axis)
        size = value.shape[where]
        begin[where], end[where], _ = slice(int(first), int(last), step).indices(size)
        stride[where] = step
    shape = [max(0, -(-(e - b) // s)) for b, e, s in zip(begin, end, stride, strict=True)]
    inputs = [
        value,
        *(graph.integers(n, name) for n, name in ((begin, "begin"), (end, "end"), (stride, "stride"))),
    ]
    made = graph.emit(
        "STRIDED_SLICE",
        inputs,
        shape,
        quantisation=value.quantisation,
        order=value.order,
        name=node.output[0],
    )
    graph.finish(node, made)


def gather(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Gather by known indices."""
    value, indices = graph.value(node, 0), graph.known(node, 1)
    if indices is None or indices.ndim > 1:
        raise unsupported(node, "its indices are a table")
    onnx_axis = int(attributes(node).get("axis", 0)) % len(value.shape)
    if graph.gather_by_convolution and len(value.shape) == 4 and onnx_axis == 1:
        value = graph.ordered(value, CHANNELS_LAST[4])
    axis = value.axis(onnx_axis)
    positions = [int(index) % value.shape[axis] for index in np.atleast_1d(indices)]
    shape = [*value.shape[:axis], len(positions), *value.shape[axis + 1 :]]
    if (
        graph.gather_by_convolution
        and value.quantisation is not None
        and indices.ndim == 1
        and axis == len(shape) - 1
    ):
        graph.finish(node, _gathered_channels(graph, node, value, positions))
        return
    made = graph.emit(
        "GATHER", [value, graph.integers(positions, "indices")], shape, quantisation=value.quantisation,
        order=value.order, name=node.output[0], axis=axis,
    )  # fmt: skip
    if indices.ndim == 0:
        rest = [size for i, size in enumerate(shape) if i != axis]
        made = graph.reshaped(made, rest, without(value.order, {onnx_axis}))
    graph.finish(node, made)


def _gathered_channels(graph: Graph, node: onnx.NodeProto, value: Value, positions: list[int]) -> Value:
    # NPUs have no gather, but a convolution of one tap whose weights are 0 and 1 moves integers exactly.
    channels, rest = value.shape[-1], int(np.prod(value.shape[:-1]))
    weight = np.zeros((len(positions), channels, 1, 1), np.int8)
    weight[np.arange(len(positions)), positions] = 1
    one = Constant(weight, Quantisation((1.0,), (0,)))
    map_order = CHANNELS_LAST[4]
    flat = value if len(value.shape) == 4 else graph.reshaped(value, (1, 1, rest, channels), map_order)
    window = Window((1, 1), (1, 1), (1, 1), (0, 0), (0, 0), (flat.shape[1], flat.shape[2]))
    made = convolved(graph, node, flat, one, None, window, 1, value.quantisation)
    if len(value.shape) == 4:
        return Value(made.index, made.shape, value.order, value.quantisation)
    return graph.reshaped(made, (*value.shape[:-1], len(positions)), value.order)


def pad(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Pad: zeros, another constant, or the map reflected."""
    value, mode = graph.value(node, 0), attributes(node).get("mode", "constant")
    listed = graph.known(node, 1, "pads")
    if listed is None or mode not in ("constant", "reflect"):
        raise unsupported(node, f"mode {mode}")
    axes = graph.known(node, 3)
    chosen = list(range(len(value.shape))) if axes is None else [int(axis) for axis in axes]
    pads = [int(number) for number in listed]
    amounts = [[0, 0] for _ in value.shape]
    for number, axis in enumerate(chosen):
        amounts[value.axis(axis)] = [pads[number], pads[number + len(chosen)]]
    shape = [size + sum(pair) for size, pair in zip(value.shape, amounts, strict=True)]
    inputs = [value, graph.integers(amounts, "paddings")]
    code, options = "PAD", {}
    if mode == "reflect":
        code, options = "MIRROR_PAD", {"mode": schema.MirrorPadMode.REFLECT}
    else:
        given = graph.known(node, 2, "value")
        fill = 0.0 if given is None else float(np.asarray(given).reshape(()))
        if fill != 0.0:
            constant = Constant(np.full((1,), fill, np.float32))
            if value.quantisation is not None:
                constant = quantised(constant.array, value.quantisation)
            code = "PADV2"
            inputs.append(graph.stored(constant, f"{node.name}/fill"))
    made = graph.emit(
        code,
        inputs,
        shape,
        quantisation=value.quantisation,
        order=value.order,
        name=node.output[0],
        **options,
    )
    graph.finish(node, made)


def identity(graph: Graph, node: onnx.NodeProto) -> None:
    """Pass the operand on: Identity, Dropout, a Cast of float32 to float32."""
    if node.op_type == "Cast" and attributes(node).get("to") != onnx.TensorProto.FLOAT:
        raise unsupported(node, "a cast to another type than float32")
    graph.finish(node, graph.value(node, 0))


def expand(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Expand as a product with ones."""
    value, shape = graph.value(node, 0), graph.known(node, 1)
    if shape is None:
        raise unsupported(node, "no shape")
    target = np.broadcast_shapes(value.onnx_shape, tuple(int(size) for size in shape))
    if target == value.onnx_shape:
        graph.finish(node, value)
        return
    operands: Sequence[Value | Constant] = (graph.real(value), Constant(np.ones(target, np.float32)))
    values, stored = aligned(graph, operands, node.name)
    graph.finish(node, graph.emit("MUL", values, stored, order=values[0].order, name=node.output[0]))


HANDLERS = {
    "Reshape": reshape, "Flatten": reshape, "Squeeze": reshape, "Unsqueeze": reshape, "Transpose": transpose,
    "Concat": concat, "Split": split, "Slice": sliced, "Gather": gather, "Pad": pad, "Identity": identity,
    "Dropout": identity, "Cast": identity, "Expand": expand,
}  # fmt: skip
