"""The layers of a graph that can be quantised: which nodes, how many MACs, how many weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from jaxtyping import Float
from onnx import helper
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

CONV_MATMUL = ("Conv", "ConvTranspose", "MatMul", "Gemm")
ALL_OPS = tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))


@dataclass(frozen=True)
class Layer:
    """A convolution or product; or, as one, all nodes of an operator that multiplies nothing.

    Attributes:
        name: of the node, or ``all OPERATOR``.
        operator: ONNX operator type.
        nodes: names of its nodes.
        macs: multiply-accumulates of one row.
        elements: outputs of one row.
        parameters: constant weights, the bias left out.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    macs: int
    elements: int
    parameters: int = 0

    @property
    def operations(self) -> int:
        """Return MACs and outputs together: what leaving it in float gives up."""
        return self.macs + self.elements


def layers(model: Path, row: Float[np.ndarray, "1 1 mels frames"]) -> list[Layer]:
    """Return what can be quantised in ``model``: multiplying layers in the graph's order, then operators.

    Args:
        model: a graph whose nodes are named (``int8.calibrate`` names them).
        row: one input; the counts are of it.
    """
    graph = onnx.load(str(model)).graph
    shapes = tensor_shapes(model, row)
    constants = {i.name: math.prod(i.dims) for i in graph.initializer}
    found, others = [], dict[str, list[onnx.NodeProto]]()
    for node in graph.node:
        if node.op_type in CONV_MATMUL:
            weights = sum(constants.get(name, 0) for name in node.input[:2])
            elements = math.prod(shapes[node.output[0]])
            macs = _macs(node, shapes)
            found.append(Layer(node.name, node.op_type, (node.name,), macs, elements, weights))
        elif node.op_type in ALL_OPS and shapes.get(node.output[0]) is not None:
            others.setdefault(node.op_type, []).append(node)
    for operator, nodes in others.items():
        elements = sum(math.prod(shapes[node.output[0]]) for node in nodes)
        found.append(Layer(f"all {operator}", operator, tuple(n.name for n in nodes), 0, elements))
    return found


def tensor_shapes(model: Path, row: Float[np.ndarray, "1 1 mels frames"]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every float tensor while ``row`` runs: initialisers, inputs and node outputs."""
    outputs = float_outputs(model, row)
    graph = onnx.load(str(model), load_external_data=False).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    shapes[graph.input[0].name] = row.shape
    return shapes | {name: value.shape for name, value in outputs.items()}


def float_outputs(
    model: Path, rows: Float[np.ndarray, "rows 1 mels frames"], names: tuple[str, ...] | None = None
) -> dict[str, np.ndarray]:
    """Return the float32 tensors called ``names`` (default: every node's outputs) while ``rows`` runs."""
    loaded = onnx.load(str(model))
    graph = loaded.graph
    wanted = names if names is not None else tuple(o for node in graph.node for o in node.output if o)
    del graph.output[:]
    # Without types the runtime infers them, whatever the tensors are.
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        loaded.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run(list(wanted), {session.get_inputs()[0].name: rows})
    return {n: v for n, v in zip(wanted, values, strict=True) if getattr(v, "dtype", None) == np.float32}


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    output = math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":
        return output * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
    left = shapes[node.input[0]]
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return output * left[-2 if transposed else -1]
