"""What of an ONNX file is weights, what is graph, and what 4 and 8 bits a weight would leave of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16, TensorProto.DOUBLE: 64,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.BOOL: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16,
    TensorProto.INT32: 32, TensorProto.UINT32: 32, TensorProto.INT64: 64, TensorProto.UINT64: 64,
    TensorProto.INT4: 4, TensorProto.UINT4: 4,
}  # fmt: skip


@dataclass(frozen=True)
class Flash:
    """Bytes that one model keeps in flash.

    Attributes:
        file_bytes: the file, and files beside it that hold its weights.
        weight_bytes: of these, constant tensors: weights, biases, scales, tables.
        graph_bytes: the rest: operators, names, shapes, metadata.
    """

    file_bytes: int
    weight_bytes: int
    graph_bytes: int


def flash_of(path: Path) -> Flash:
    """Return the flash that the ONNX file ``path`` takes as it lies on disk."""
    model = onnx.load(str(path), load_external_data=False)
    beside = {
        entry.value
        for tensor in _constants(model.graph)
        for entry in tensor.external_data
        if tensor.data_location == TensorProto.EXTERNAL and entry.key == "location"
    }
    file_bytes = path.stat().st_size + sum((path.parent / name).stat().st_size for name in beside)
    weights = sum(tensor_bytes(tensor) for tensor in _constants(model.graph))
    return Flash(file_bytes, weights, file_bytes - weights)


def tensor_bytes(tensor: TensorProto) -> int:
    """Return the bytes of a tensor's elements; strings count their text."""
    if tensor.data_type == TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    return -(-int(math.prod(tensor.dims)) * _BITS[tensor.data_type] // 8)


def _constants(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _constants(attribute.g)
