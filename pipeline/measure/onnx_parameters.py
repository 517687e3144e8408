"""How many trained numbers an ONNX file holds, whoever wrote it, in float or in integers."""

from __future__ import annotations

import math
from pathlib import Path

import onnx

_TYPES = {
    getattr(onnx.TensorProto, name)
    for name in (
        "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2",
    )
}  # fmt: skip
# Scales and zero points say how integers are read; they are no parameters.
_QUANTISED_INPUTS = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
}  # fmt: skip


def onnx_parameters(path: Path) -> int:
    """Return the elements of the file's weights: floats and small integers, biases of integer layers included.

    Constants of one element, shapes, scales and zero points are not counted. Batch normalisation that an
    exporter folded into a convolution is gone, so that this is up to a few per cent below the trained network's.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    left_out: set[str] = set()
    biases: set[str] = set()
    for node in graph.node:
        left_out |= {node.input[i] for i in _QUANTISED_INPUTS.get(node.op_type, ()) if i < len(node.input)}
        if node.op_type == "DequantizeLinear":
            biases.add(node.input[0])
        if node.op_type == "QLinearConv" and len(node.input) > 8:
            biases.add(node.input[8])
    constants = [(tensor.name, tensor) for tensor in graph.initializer]
    constants += [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    total = 0
    for name, tensor in constants:
        of_weights = tensor.data_type in _TYPES
        of_bias = tensor.data_type == onnx.TensorProto.INT32 and name in biases
        elements = math.prod(tensor.dims)
        if (of_weights or of_bias) and name not in left_out and elements > 1:
            total += elements
    return total
