"""From a quantised ONNX graph of one fixed shape to a TFLite file with the same integers and scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from pipeline.deploy.tflite import arithmetic, movement, windows
from pipeline.deploy.tflite.graph import Constant, ConversionError, Graph, Value, label
from pipeline.deploy.tflite.model import Quantisation

HANDLERS: dict[str, Callable[[Graph, onnx.NodeProto], None]] = {
    **windows.HANDLERS, **arithmetic.HANDLERS, **movement.HANDLERS,
}  # fmt: skip
METADATA = "ossicle"
EndTypes = Literal["float32", "int8"]


@dataclass(frozen=True)
class Converted:
    """A TFLite file and what went into it.

    Attributes:
        content: the file.
        operators: how many of each TFLite operator.
        float_nodes: ONNX nodes that compute in float.
        input: what int8 inputs stand for; None where the file takes float32.
        output: the same of its first result; known where that is int8 before a last step to float32.
    """

    content: bytes
    operators: dict[str, int]
    float_nodes: tuple[str, ...]
    input: Quantisation | None
    output: Quantisation | None


def convert(
    model: onnx.ModelProto, *, ends: EndTypes = "float32", gather_by_convolution: bool = False
) -> Converted:
    """Return ``model`` as a TFLite file.

    Args:
        model: one input, of a fixed shape, operators of the default domain, activations quantised to
            signed 8 bit where they are (Q/DQ); shapes and axes are constants.
        ends: what the file takes and gives: float32 as the ONNX file does, or, for processors without float,
            the int8 tensors inside (the input is then read by one QuantizeLinear, and a DequantizeLinear gives
            the output).
        gather_by_convolution: int8 channels are reordered by a convolution of zeros and ones: for NPUs without GATHER.

    Raises:
        ConversionError: a node has no form in TFLite; operator and node are named.
    """
    graph = Graph(model, gather_by_convolution=gather_by_convolution)
    source, value = _input(graph, ends)
    graph.values[source] = value
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            _quantise(graph, node)
        elif node.op_type == "DequantizeLinear":
            _dequantise(graph, node)
        elif node.op_type == "Constant":
            array = onnx.numpy_helper.to_array(node.attribute[0].t)
            graph.constants[node.output[0]] = Constant(array)
        elif node.op_type in HANDLERS:
            HANDLERS[node.op_type](graph, node)
            made = graph.values.get(node.output[0])
            if made is not None and made.quantisation is None:
                graph.float_nodes.append(label(node))
        else:
            raise ConversionError(
                f"{label(node)} has no TFLite form here",
                expected=", ".join(sorted(HANDLERS)),
                run="another --to, or a student without this operator",
            )
    outputs = {output.name: _output(graph, output.name, ends) for output in model.graph.output}
    first = graph.values[model.graph.output[0].name]
    properties = {p.key: p.value for p in model.metadata_props}
    content = graph.writer.pack(
        {source: value.index},
        {name: output.index for name, output in outputs.items()},
        {METADATA: json.dumps(properties)} if properties else {},
    )
    return Converted(
        content,
        graph.writer.operators(),
        tuple(graph.float_nodes),
        value.quantisation,
        first.quantisation,
    )


def _output(graph: Graph, name: str, ends: EndTypes) -> Value:
    if name not in graph.values:
        raise ConversionError(f"the graph's output {name!r} is made by no node")
    last = graph.plain(graph.values[name])
    if ends == "float32":
        return graph.real(last)
    if last.quantisation is None:
        raise ConversionError(f"the graph's output {name!r} is not quantised", expected="int8")
    return last


def _input(graph: Graph, ends: EndTypes) -> tuple[str, Value]:
    known = {initializer.name for initializer in graph.onnx.initializer}
    inputs = [given for given in graph.onnx.input if given.name not in known]
    if len(inputs) != 1:
        raise ConversionError(
            "a TFLite file is written of a graph of one input", got=", ".join(i.name for i in inputs)
        )
    source = inputs[0]
    shape = tuple(int(d.dim_value) for d in source.type.tensor_type.shape.dim)
    if not shape or min(shape) < 1:
        raise ConversionError("a TFLite file has one fixed input shape", got=shape, expected="sizes above 0")
    order = tuple(range(len(shape)))
    if ends == "float32":
        index = graph.writer.tensor(source.name, shape, np.float32)
        return source.name, Value(index, shape, order)
    quantisation = graph.wanted(source.name)
    if quantisation is None:
        raise ConversionError(f"the graph's input {source.name!r} is not quantised", expected="int8")
    index = graph.writer.tensor(source.name, shape, np.int8, quantisation)
    return source.name, Value(index, shape, order, quantisation)


def _quantise(graph: Graph, node: onnx.NodeProto) -> None:
    _signed_8_bit(graph, node)
    parameters = graph.parameters(node)
    constant = graph.constant(node, 0)
    if constant is not None:
        graph.constants[node.output[0]] = Constant(
            arithmetic.quantised(constant.real(), parameters).array, parameters
        )
        return
    graph.finish(node, graph.requantised(graph.value(node, 0), parameters))


def _dequantise(graph: Graph, node: onnx.NodeProto) -> None:
    constant = graph.constant(node, 0)
    if constant is not None:
        graph.constants[node.output[0]] = Constant(constant.array, graph.parameters(node))
        return
    # Nothing is written: who reads the result decides whether it is wanted in float.
    graph.finish(node, graph.value(node, 0))


def _signed_8_bit(graph: Graph, node: onnx.NodeProto) -> None:
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    kind = "uint8" if zero is None else zero.array.dtype.name
    if kind != "int8":
        raise ConversionError(
            f"{label(node)} makes {kind}", expected="int8 (S8S8 files)", run="ossicle export writes both"
        )
