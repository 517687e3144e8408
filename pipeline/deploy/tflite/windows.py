"""Convolutions and pools: channels-last, weights in TFLite's order, paddings SAME where they are, PAD where not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema

from pipeline.deploy.tflite.graph import CHANNELS_LAST, Constant, Graph, Value, attributes, label, unsupported
from pipeline.deploy.tflite.model import Quantisation

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
LEAST_INT8 = -128


@dataclass(frozen=True)
class Window:
    """How a kernel walks over height and width.

    Attributes:
        kernel, strides, dilations: (height, width).
        before: padding in front.
        after: padding behind that a step of the kernel reaches; what none reaches is left out.
        out: (height, width) of the result.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    out: tuple[int, int]

    @property
    def padding(self) -> int | None:
        """TFLite's word for this padding, or None where it has none."""
        if not any(self.before) and not any(self.after):
            return int(VALID)
        halves = [((b + a) // 2, b + a - (b + a) // 2) for b, a in zip(self.before, self.after, strict=True)]
        return (
            int(SAME) if halves == list(zip(self.before, self.after, strict=True)) and self._fills else None
        )

    @property
    def _fills(self) -> bool:
        # SAME pads to ceil(size / stride) steps; another number of them is another padding.
        for kernel, stride, dilation, before, after, out in zip(
            self.kernel, self.strides, self.dilations, self.before, self.after, self.out, strict=True
        ):
            size = (out - 1) * stride + (kernel - 1) * dilation + 1 - before - after
            if out != math.ceil(size / stride):
                return False
        return True


def window_of(node: onnx.NodeProto, size: tuple[int, int], kernel: tuple[int, int]) -> Window:
    """Return how ``node`` walks over a map of ``size`` (height, width)."""
    given = attributes(node)
    if given.get("auto_pad", "NOTSET") != "NOTSET":
        raise unsupported(node, f"auto_pad {given['auto_pad']}")
    axes = len(given.get("kernel_shape", kernel))

    def pair(name: str, default: int) -> tuple[int, int]:
        found = list(given.get(name, [default] * axes))
        return (1 if default else 0, found[0]) if len(found) == 1 else (found[0], found[1])

    strides, dilations = pair("strides", 1), pair("dilations", 1)
    pads = list(given.get("pads", [0] * 2 * axes))
    pads = [0, pads[0], 0, pads[1]] if len(pads) == 2 else pads
    before, out, after = [], [], []
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        steps = (size[axis] + pads[axis] + pads[axis + 2] - reach) / strides[axis]
        number = (math.ceil(steps) if given.get("ceil_mode", 0) else math.floor(steps)) + 1
        if given.get("ceil_mode", 0) and (number - 1) * strides[axis] >= size[axis] + pads[axis]:
            number -= 1  # a window that would begin behind the map is none
        before.append(pads[axis])
        out.append(number)
        after.append(max(0, (number - 1) * strides[axis] + reach - size[axis] - pads[axis]))
    return Window(kernel, strides, dilations, (before[0], before[1]), (after[0], after[1]), (out[0], out[1]))


def _map_of(graph: Graph, node: onnx.NodeProto) -> tuple[Value, int]:
    """Return the node's map as (1, height, width, channels), and the rank it has in ONNX."""
    value = graph.value(node, 0)
    rank = len(value.shape)
    if rank not in (3, 4):
        raise unsupported(node, f"{rank - 2} spatial axes")
    value = graph.ordered(value, CHANNELS_LAST[rank])
    if rank == 3:
        value = graph.reshaped(value, (value.shape[0], 1, *value.shape[1:]), CHANNELS_LAST[4])
    return value, rank


def _finish(graph: Graph, node: onnx.NodeProto, value: Value, rank: int) -> None:
    if rank == 3:
        value = graph.reshaped(value, (value.shape[0], *value.shape[2:]), CHANNELS_LAST[3])
    graph.finish(node, value)


def padded(graph: Graph, value: Value, before: Sequence[int], after: Sequence[int], fill: float) -> Value:
    """Return ``value`` (channels-last) with rows and columns around it; ``fill`` in int8 is the integer itself."""
    amounts = [[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]]
    shape = [size + sum(pair) for size, pair in zip(value.shape, amounts, strict=True)]
    inputs = [value, graph.integers(amounts, "paddings")]
    quantisation = value.quantisation
    if fill == (quantisation.zero_point[0] if quantisation else 0):
        return graph.emit("PAD", inputs, shape, quantisation=quantisation, order=value.order)
    array = np.asarray([fill], np.int8 if quantisation else np.float32)
    inputs.append(graph.weights(array, quantisation, "fill"))
    return graph.emit("PADV2", inputs, shape, quantisation=quantisation, order=value.order)


def zero_of(value: Value) -> float:
    """Return what stands for 0 in ``value``."""
    return float(value.quantisation.zero_point[0]) if value.quantisation else 0.0


def convolution(graph: Graph, node: onnx.NodeProto) -> None:
    """Write ONNX's Conv as CONV_2D or DEPTHWISE_CONV_2D."""
    weight = graph.constant(node, 1)
    if weight is None:
        raise unsupported(node, "its weights are computed by the graph")
    result = graph.result(node) if weight.quantisation else None
    value, rank = _map_of(graph, node)
    if result is None:
        value = graph.real(value)
        weight = Constant(weight.real())
    if rank == 3:
        weight = Constant(weight.array[:, :, None], weight.quantisation)
    bias = graph.constant(node, 2)
    if bias is None and len(node.input) > 2:
        raise unsupported(node, "its bias is computed by the graph")
    groups = int(attributes(node).get("group", 1))
    window = window_of(node, (value.shape[1], value.shape[2]), (weight.array.shape[2], weight.array.shape[3]))
    made = convolved(
        graph, node, value, weight, None if bias is None else bias.real(), window, groups, result
    )
    _finish(graph, node, made, rank)


def convolved(
    graph: Graph,
    node: onnx.NodeProto,
    value: Value,
    weight: Constant,
    bias: np.ndarray | None,
    window: Window,
    groups: int,
    result: Quantisation | None,
) -> Value:
    """Write one convolution of a channels-last map; ``weight`` is (out, in of a group, height, width).

    Args:
        bias: real numbers (out,), or None for zeros; in int8 it gets the scale input x weight, as TFLite wants.
        result: integers to compute in; None for float.
    """
    channels, outs = value.shape[3], weight.array.shape[0]
    depthwise = groups == channels and weight.array.shape[1] == 1
    if window.padding is None:
        value = padded(graph, value, window.before, window.after, zero_of(value))
    axis, quantisation = (3 if depthwise else 0), weight.quantisation
    if result is not None and quantisation is not None:
        if any(quantisation.zero_point):
            raise unsupported(node, "its weights are not symmetric (their zero point is not 0)")
        if len(quantisation.scale) > 1 and quantisation.axis != 0:
            raise unsupported(node, f"its weights are quantised along axis {quantisation.axis}")
        scales = quantisation.scale * outs if len(quantisation.scale) == 1 else quantisation.scale
        quantisation = Quantisation(scales, (0,) * outs, axis)
    # From (out, in, height, width) to (out, height, width, in), and depthwise to (1, height, width, out).
    array = np.ascontiguousarray(weight.array.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1)))
    inputs = [value, graph.weights(array, quantisation, f"{node.name}/weight"),
              _bias(graph, node, bias, outs, value, quantisation)]  # fmt: skip
    options: dict[str, Any] = {
        "padding": VALID if window.padding is None else window.padding,
        "strideH": window.strides[0], "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0], "dilationWFactor": window.dilations[1],
    }  # fmt: skip
    if depthwise:
        options["depthMultiplier"] = outs // channels
    return graph.emit(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", inputs, (value.shape[0], *window.out, outs),
        quantisation=result, order=CHANNELS_LAST[4], name=node.output[0], **options,
    )  # fmt: skip


def _bias(
    graph: Graph,
    node: onnx.NodeProto,
    bias: np.ndarray | None,
    outs: int,
    value: Value,
    weights: Quantisation | None,
) -> Value:
    numbers = np.zeros(outs, np.float32) if bias is None else np.asarray(bias, np.float32).reshape(-1)
    name = f"{node.name}/bias"
    if value.quantisation is None or weights is None:
        return graph.weights(numbers, None, name)
    scale = value.quantisation.scale[0] * np.asarray(weights.scale, np.float64)
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(numbers / scale), limits.min, limits.max).astype(np.int32)
    zeros = (0,) * len(scale)
    return graph.weights(integers, Quantisation(tuple(map(float, scale)), zeros, 0), name)


def pool(graph: Graph, node: onnx.NodeProto) -> None:
    """Write MaxPool, AveragePool, GlobalAveragePool and GlobalMaxPool."""
    value, rank = _map_of(graph, node)
    is_max = node.op_type.endswith("MaxPool")
    size = (value.shape[1], value.shape[2])
    if node.op_type.startswith("Global"):
        window = Window(size, size, (1, 1), (0, 0), (0, 0), (1, 1))
    else:
        kernel = attributes(node)["kernel_shape"]
        window = window_of(node, size, (1, kernel[0]) if len(kernel) == 1 else (kernel[0], kernel[1]))
    if window.dilations != (1, 1):
        raise unsupported(node, "a dilated pool")
    result = value.quantisation if is_max else graph.result(node)
    if result is None:
        value = graph.real(value)
    given = attributes(node)
    counted = bool(given.get("count_include_pad", 0)) and any((*window.before, *given.get("pads", ())))
    padding = window.padding
    if padding is None or (not is_max and counted and padding == SAME):
        if not is_max and not counted:
            raise unsupported(node, "a padding that is neither counted nor TFLite's SAME")
        if not is_max and given.get("ceil_mode", 0):
            raise unsupported(node, "a counted padding that ends in a part of a window")
        least = LEAST_INT8 if value.quantisation else float(np.finfo(np.float32).min)
        value = padded(graph, value, window.before, window.after, least if is_max else zero_of(value))
        padding = int(VALID)
    if not is_max and result is not None and not result.same(value.quantisation) and padding == VALID:
        made = _averaged(graph, node, value, window, result)
    else:
        made = graph.emit(
            "MAX_POOL_2D" if is_max else "AVERAGE_POOL_2D", [value],
            (value.shape[0], *window.out, value.shape[3]), quantisation=value.quantisation, order=CHANNELS_LAST[4],
            name=node.output[0], padding=padding, strideH=window.strides[0], strideW=window.strides[1],
            filterHeight=window.kernel[0], filterWidth=window.kernel[1],
        )  # fmt: skip
    _finish(graph, node, made, rank)


def _averaged(
    graph: Graph, node: onnx.NodeProto, value: Value, window: Window, result: Quantisation
) -> Value:
    # AVERAGE_POOL_2D keeps its operand's scale, and the average would be rounded twice; a depthwise
    # convolution of equal weights rounds once, to the scale that is wanted.
    channels, number = value.shape[3], window.kernel[0] * window.kernel[1]
    weight = Constant(
        np.full((channels, 1, *window.kernel), 127, np.int8),
        Quantisation((1.0 / (127 * number),), (0,), 0),
    )
    inside = Window(window.kernel, window.strides, (1, 1), (0, 0), (0, 0), window.out)
    return convolved(graph, node, value, weight, None, inside, channels, result)


def pointwise(
    graph: Graph,
    node: onnx.NodeProto,
    value: Value,
    factor: float,
    offset: float,
    result: Quantisation,
    **options: Any,
) -> Value:
    """Write ``factor * value + offset`` in int8 with one rounding: a depthwise convolution of one tap."""
    shape, order = value.shape, value.order
    number = int(np.prod(shape))
    channels = shape[-1] if shape else 1
    flat = graph.reshaped(value, (1, 1, number // channels, channels), CHANNELS_LAST[4])
    sign = 127 if factor > 0 else -127
    weights = np.full((1, 1, 1, channels), sign, np.int8)
    quantisation = Quantisation((abs(factor) / 127,) * channels, (0,) * channels, 3)
    bias = _bias(graph, node, np.full(channels, offset), channels, flat, quantisation)
    made = graph.emit(
        "DEPTHWISE_CONV_2D", [flat, graph.weights(weights, quantisation, f"{node.name}/factor"), bias], flat.shape,
        quantisation=result, order=CHANNELS_LAST[4], name=node.output[0], padding=VALID, strideH=1, strideW=1,
        dilationHFactor=1, dilationWFactor=1, depthMultiplier=1, **options,
    )  # fmt: skip
    return graph.reshaped(made, shape, order)


def linear(graph: Graph, node: onnx.NodeProto) -> None:
    """Write Gemm, and MatMul by known weights, as FULLY_CONNECTED; MatMul of two computed matrices as BATCH_MATMUL."""
    given = attributes(node)
    weight = graph.constant(node, 1)
    if weight is None:
        _product(graph, node)
        return
    if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0 or given.get("transA", 0):
        raise unsupported(node, "alpha, beta or transA")
    if weight.array.ndim != 2:
        raise unsupported(node, f"weights of {weight.array.ndim} axes")
    result = graph.result(node) if weight.quantisation else None
    value = graph.plain(graph.value(node, 0))
    if result is None:
        value = graph.real(value)
        weight = Constant(weight.real())
    turned = bool(given.get("transB", 0))
    array = weight.array if turned else weight.array.T
    quantisation = weight.quantisation
    if quantisation is not None and len(quantisation.scale) > 1:
        if (quantisation.axis % 2) != (0 if turned else 1):
            raise unsupported(node, "its weights are quantised along their inputs")
        quantisation = Quantisation(quantisation.scale, quantisation.zero_point, 0)
    if quantisation is not None and any(quantisation.zero_point):
        raise unsupported(node, "its weights are not symmetric (their zero point is not 0)")
    bias = graph.constant(node, 2)
    inputs = [
        value,
        graph.weights(np.ascontiguousarray(array), quantisation, f"{node.name}/weight"),
        _bias(graph, node, None if bias is None else bias.real(), array.shape[0], value, quantisation),
    ]
    made = graph.emit(
        "FULLY_CONNECTED", inputs, (*value.shape[:-1], array.shape[0]), quantisation=result, name=node.output[0],
        keepNumDims=len(value.shape) != 2,
    )  # fmt: skip
    graph.finish(node, made)


def _product(graph: Graph, node: onnx.NodeProto) -> None:
    if node.op_type != "MatMul":
        raise unsupported(node, "its weights are computed by the graph")
    result = graph.result(node)
    pair = [graph.plain(graph.value(node, position)) for position in (0, 1)]
    if result is None:
        pair = [graph.real(value) for value in pair]
    if min(len(value.shape) for value in pair) < 2:
        raise unsupported(node, f"operands of {[len(v.shape) for v in pair]} axes: {label(node)}")
    outer = np.broadcast_shapes(pair[0].shape[:-2], pair[1].shape[:-2])
    shape = (*outer, pair[0].shape[-2], pair[1].shape[-1])
    graph.finish(node, graph.emit("BATCH_MATMUL", pair, shape, quantisation=result, name=node.output[0]))


HANDLERS = {
    "Conv": convolution,
    "MaxPool": pool, "AveragePool": pool, "GlobalAveragePool": pool, "GlobalMaxPool": pool,
    "Gemm": linear, "MatMul": linear,
}  # fmt: skip
