"""Sums, products, activations, reductions and normalisations: in int8 where TFLite has the operator, else in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema

from pipeline.deploy.tflite.graph import Constant, Graph, Value, attributes, unsupported
from pipeline.deploy.tflite.model import Quantisation
from pipeline.deploy.tflite.windows import pointwise

BINARY = {
    "Add": "ADD",
    "Sub": "SUB",
    "Mul": "MUL",
    "Div": "DIV",
    "Max": "MAXIMUM",
    "Min": "MINIMUM",
    "Pow": "POW",
}
UNARY = {"Sqrt": "SQRT", "Exp": "EXP", "Abs": "ABS", "Neg": "NEG", "Log": "LOG", "Gelu": "GELU"}
# What TFLite's definition of these operators fixes about their result.
FIXED = {
    "Sigmoid": ("LOGISTIC", Quantisation((1 / 256,), (-128,))),
    "Tanh": ("TANH", Quantisation((1 / 128,), (0,))),
    "Softmax": ("SOFTMAX", Quantisation((1 / 256,), (-128,))),
}
REDUCTIONS = {"ReduceMean": "MEAN", "ReduceMax": "REDUCE_MAX", "ReduceSum": "SUM", "ReduceL2": "SUM"}


def symmetric(array: np.ndarray) -> Constant:
    """Return known real numbers as int8 with zero point 0."""
    largest = float(np.abs(array).max(initial=0.0)) or 1.0
    integers = np.clip(np.rint(array / (largest / 127)), -127, 127).astype(np.int8)
    return Constant(integers, Quantisation((largest / 127,), (0,)))


def quantised(array: np.ndarray, quantisation: Quantisation) -> Constant:
    """Return known real numbers as the nearest of these integers."""
    integers = np.rint(array / quantisation.scale[0]) + quantisation.zero_point[0]
    return Constant(np.clip(integers, -128, 127).astype(np.int8), quantisation)


def aligned(graph: Graph, operands: Sequence[Value | Constant], name: str) -> tuple[list[Value], list[int]]:
    """Return operands as tensors of one rank and one order of axes, and the shape they broadcast to."""
    rank = max(
        o.array.ndim if isinstance(o, Constant) else len(o.shape) for o in operands
    )  # ranks count in ONNX's right-aligned broadcasting
    values = [o for o in operands if isinstance(o, Value)]
    leader = max(values, key=lambda value: (len(value.shape) == rank, int(np.prod(value.shape))))
    order = leader.order if len(leader.order) == rank else tuple(range(rank))
    made = []
    for number, operand in enumerate(operands):
        if isinstance(operand, Constant):
            array = operand.array.reshape((1,) * (rank - operand.array.ndim) + operand.array.shape)
            if operand.quantisation is not None and len(operand.quantisation.scale) > 1:
                operand, array = Constant(array), operand.real().reshape(array.shape)
            made.append(graph.stored(Constant(array, operand.quantisation), f"{name}/{number}", order))
        elif len(operand.shape) < rank:
            shape = (1,) * (rank - len(operand.shape)) + operand.onnx_shape
            made.append(graph.ordered(graph.flat(operand, shape), order))
        else:
            made.append(graph.ordered(operand, order))
    return made, list(np.broadcast_shapes(*(value.shape for value in made)))


def _operands(graph: Graph, node: onnx.NodeProto) -> list[Value | Constant]:
    return [
        graph.constants[name] if name in graph.constants else graph.value(node, position)
        for position, name in enumerate(node.input)
    ]


def binary(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Add, Sub, Mul, Div, Max, Min and Pow of two operands."""
    operands = _operands(graph, node)
    if len(operands) == 1:
        graph.finish(node, graph.value(node, 0))
        return
    if len(operands) != 2:
        raise unsupported(node, f"{len(operands)} operands")
    if all(isinstance(operand, Constant) for operand in operands):
        raise unsupported(node, "all its operands are constants")
    code, result = BINARY[node.op_type], graph.result(node)
    if result is not None and code == "DIV" and isinstance(operands[1], Constant):
        code, operands[1] = "MUL", symmetric(1.0 / operands[1].real())
    if code in ("DIV", "POW"):
        result = None
    ready: list[Value | Constant] = []
    for operand in operands:
        if isinstance(operand, Constant):
            if result is None:
                operand = Constant(operand.real())
            elif code in ("MAXIMUM", "MINIMUM"):
                operand = quantised(operand.real(), result)
            elif operand.quantisation is None or len(operand.quantisation.scale) > 1:
                operand = symmetric(operand.real())
        elif result is None:
            operand = graph.real(operand)
        elif code in ("MAXIMUM", "MINIMUM"):
            # Rounding is monotone: the greater of two rounded numbers is the rounded greater one.
            operand = graph.requantised(operand, result)
        ready.append(operand)
    values, shape = aligned(graph, ready, node.name)
    order = next(v for v, o in zip(values, ready, strict=True) if isinstance(o, Value)).order
    made = graph.emit(code, values, shape, quantisation=result, order=order, name=node.output[0])
    graph.finish(node, made)


def unary(graph: Graph, node: onnx.NodeProto) -> None:
    """Write functions of one operand that TFLite has in float."""
    value = graph.real(graph.value(node, 0))
    made = graph.emit(UNARY[node.op_type], [value], value.shape, order=value.order, name=node.output[0])
    graph.finish(node, made)


def reciprocal(graph: Graph, node: onnx.NodeProto) -> None:
    """Write 1 / x in float."""
    value = graph.real(graph.value(node, 0))
    values, shape = aligned(graph, [Constant(np.ones((), np.float32)), value], node.name)
    graph.finish(node, graph.emit("DIV", values, shape, order=value.order, name=node.output[0]))


def clip(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Relu, Clip and LeakyRelu."""
    value, result = graph.value(node, 0), graph.result(node)
    if result is None:
        value = graph.real(value)
    shape, order = value.shape, value.order
    if node.op_type == "LeakyRelu":
        alpha = attributes(node).get("alpha", 0.01)
        made = graph.emit(
            "LEAKY_RELU", [value], shape, quantisation=result, order=order, name=node.output[0], alpha=alpha
        )
        graph.finish(node, made)
        return
    low, high = _limits(graph, node)
    code = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6"}.get((low, high))
    if code is not None:
        graph.finish(
            node, graph.emit(code, [value], shape, quantisation=result, order=order, name=node.output[0])
        )
        return
    if result is not None:
        value = graph.requantised(value, result)
    for limit, name in ((low, "MAXIMUM"), (high, "MINIMUM")):
        if not np.isfinite(limit):
            continue
        array = np.full((1,) * len(shape), limit, np.float32)
        constant = Constant(array) if result is None else quantised(array, result)
        bound = graph.stored(constant, f"{node.name}/limit", order)
        value = graph.emit(name, [value, bound], shape, quantisation=result, order=order)
    graph.finish(node, value)


def _limits(graph: Graph, node: onnx.NodeProto) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = [graph.known(node, position, name) for position, name in ((1, "min"), (2, "max"))]
    low, high = (None if limit is None else float(limit) for limit in found)
    return (-np.inf if low is None else low), (np.inf if high is None else high)


def hard_sigmoid(graph: Graph, node: onnx.NodeProto) -> None:
    """Write max(0, min(1, alpha x + beta)); in int8 as one multiplication, whose result saturates."""
    given = attributes(node)
    alpha, beta = given.get("alpha", 0.2), given.get("beta", 0.5)
    value, result = graph.value(node, 0), graph.result(node)
    shape, order = value.shape, value.order
    if result is not None:
        # Fused: not above 1; not below 0, which the zero point of a range that begins at 0 sees to.
        fused = schema.ActivationFunctionType.RELU_N1_TO_1
        made = pointwise(graph, node, value, alpha, beta, result, fusedActivationFunction=fused)
        if result.zero_point[0] != -128:
            zero = graph.stored(
                quantised(np.zeros((1,) * len(shape), np.float32), result), f"{node.name}/zero", order
            )
            made = graph.emit("MAXIMUM", [made, zero], shape, quantisation=result, order=order)
        graph.finish(node, made)
        return
    value = graph.real(value)
    for code, number in (("MUL", alpha), ("ADD", beta), ("MAXIMUM", 0.0), ("MINIMUM", 1.0)):
        constant = Constant(np.full((1,) * len(shape), number, np.float32))
        bound = graph.stored(constant, f"{node.name}/{code.lower()}", order)
        value = graph.emit(code, [value, bound], shape, order=order)
    graph.finish(node, value)


def hard_swish(graph: Graph, node: onnx.NodeProto) -> None:
    """Write HardSwish."""
    value, result = graph.value(node, 0), graph.result(node)
    value = graph.real(value) if result is None else value
    made = graph.emit(
        "HARD_SWISH", [value], value.shape, quantisation=result, order=value.order, name=node.output[0]
    )
    graph.finish(node, made)


def fixed_range(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Sigmoid, Tanh and Softmax, whose int8 results have scales of TFLite's own."""
    code, own = FIXED[node.op_type]
    value = graph.value(node, 0)
    result = None if graph.result(node) is None else own
    if result is None:
        value = graph.real(value)
    if node.op_type == "Softmax":
        axis = int(attributes(node).get("axis", -1)) % len(value.shape)
        if value.order[-1] != axis:
            value = graph.ordered(value, [a for a in range(len(value.shape)) if a != axis] + [axis])
    options = {"beta": 1.0} if code == "SOFTMAX" else {}
    made = graph.emit(
        code, [value], value.shape, quantisation=result, order=value.order, name=node.output[0], **options
    )
    graph.finish(node, made)


def without(order: Sequence[int], axes: set[int]) -> list[int]:
    """Return an order of axes after ``axes`` are gone."""
    left = [axis for axis in range(len(order)) if axis not in axes]
    return [left.index(axis) for axis in order if axis not in axes]


def reduction(graph: Graph, node: onnx.NodeProto) -> None:
    """Write ReduceMean, ReduceMax, ReduceSum and, in float, ReduceL2."""
    value, given = graph.value(node, 0), attributes(node)
    rank = len(value.shape)
    listed = graph.known(node, 1, "axes")
    axes = {int(axis) % rank for axis in (range(rank) if listed is None else np.atleast_1d(listed))}
    keep = bool(given.get("keepdims", 1))
    if node.op_type == "ReduceL2":
        value = graph.real(value)
        value = graph.emit("MUL", [value, value], value.shape, order=value.order)
    # The greatest of the integers is the greatest value's: no arithmetic, and no other scale.
    result = value.quantisation if node.op_type == "ReduceMax" else graph.result(node)
    if result is None or value.quantisation is None:
        result, value = None, graph.real(value)
    stored = sorted(value.axis(axis) for axis in axes)
    shape = [1 if i in stored else n for i, n in enumerate(value.shape) if keep or i not in stored]
    order = value.order if keep else without(value.order, axes)
    if node.op_type == "ReduceSum" and result is not None:
        graph.finish(node, _summed(graph, node, value, stored, shape, order, result))
        return
    made = graph.emit(
        REDUCTIONS[node.op_type], [value, graph.integers(stored, "axes")], shape, quantisation=result, order=order,
        name=node.output[0], keepDims=keep,
    )  # fmt: skip
    if node.op_type == "ReduceL2":
        made = graph.emit("SQRT", [made], made.shape, order=made.order)
    graph.finish(node, made)


def _summed(
    graph: Graph,
    node: onnx.NodeProto,
    value: Value,
    axes: Sequence[int],
    shape: Sequence[int],
    order: Sequence[int],
    result: Quantisation,
) -> Value:
    # The reference kernel of int8 SUM is wrong by many steps (ai-edge-litert 2.3.0); the mean times its number is
    # right, and that product keeps the integers.
    number = int(np.prod([value.shape[axis] for axis in axes]))
    of_mean = Quantisation((result.scale[0] / number,), result.zero_point)
    mean = graph.emit(
        "MEAN",
        [value, graph.integers(axes, "axes")],
        shape,
        quantisation=of_mean,
        order=order,
        keepDims=len(shape) == len(value.shape),
    )
    factor = symmetric(np.full((1,) * len(shape), number, np.float32))
    inputs = [mean, graph.stored(factor, f"{node.name}/number", order)]
    return graph.emit("MUL", inputs, shape, quantisation=result, order=order, name=node.output[0])


def normalisation(graph: Graph, node: onnx.NodeProto) -> None:
    """Write InstanceNormalization and LayerNormalization in float: mean, variance, scale, offset."""
    value = graph.real(graph.value(node, 0))
    rank = len(value.shape)
    given = attributes(node)
    is_instance = node.op_type == "InstanceNormalization"
    axes = range(2, rank) if is_instance else range(int(given.get("axis", -1)) % rank, rank)
    stored = graph.integers(sorted(value.axis(axis) for axis in axes), "axes")
    kept = [1 if value.order[i] in axes else size for i, size in enumerate(value.shape)]

    def float_op(
        code: str, inputs: Sequence[Value], shape: Sequence[int] = value.shape, **options: Any
    ) -> Value:
        return graph.emit(code, inputs, shape, order=value.order, **options)

    def known(array: np.ndarray, name: str) -> Value:
        return graph.stored(Constant(array), f"{node.name}/{name}", value.order)

    centred = float_op("SUB", [value, float_op("MEAN", [value, stored], kept, keepDims=True)])
    variance = float_op("MEAN", [float_op("MUL", [centred, centred]), stored], kept, keepDims=True)
    epsilon = known(np.full((1,) * rank, given.get("epsilon", 1e-5), np.float32), "epsilon")
    factor = float_op("RSQRT", [float_op("ADD", [variance, epsilon], kept)], kept)
    made = float_op("MUL", [centred, factor])
    for position, code in ((1, "MUL"), (2, "ADD")):
        array = graph.known(node, position)
        if array is None:
            continue
        if is_instance:
            shape = (1, -1) + (1,) * (rank - 2)
            array = array.reshape(shape)
        else:
            array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        made = float_op(code, [made, known(array.astype(np.float32), code.lower())])
    graph.finish(node, made)


HANDLERS = {
    **dict.fromkeys(BINARY, binary), **dict.fromkeys(UNARY, unary), **dict.fromkeys(FIXED, fixed_range),
    "Reciprocal": reciprocal, "Relu": clip, "Clip": clip, "LeakyRelu": clip, "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish, **dict.fromkeys(REDUCTIONS, reduction),
    "InstanceNormalization": normalisation, "LayerNormalization": normalisation,
}  # fmt: skip
