"""MACs of the graph that runs, and the share of them that runs in int8."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import MeasurementError
from pipeline.measure.graph_profile import ExecutedGraph, ExecutedNode, executed_graph

_CONVOLUTIONS = {"Conv", "FusedConv", "QLinearConv", "ConvInteger", "NhwcFusedConv", "NhwcConv"}
_PRODUCTS = {
    "MatMul",
    "FusedMatMul",
    "QLinearMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
}
_GEMMS = {"Gemm", "FusedGemm", "QGemm"}
_UNCOUNTED = {
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "LSTM", "GRU", "RNN", "Einsum",
    "DynamicQuantizeLSTM", "ConvTranspose", "FusedConvTranspose", "MatMulNBits", "DFT", "STFT",
}  # fmt: skip


@dataclass(frozen=True)
class Int8Share:
    """MACs of one inference by the type they run in.

    Attributes:
        macs: all MACs.
        int8_macs: those whose activations are int8 or uint8.
        float_ops: operators that run in float although the file is quantised, with the number of nodes.
    """

    macs: int
    int8_macs: int
    float_ops: dict[str, int]

    @property
    def share(self) -> float:
        """``int8_macs / macs``; 0 for a graph without MACs."""
        return self.int8_macs / self.macs if self.macs else 0.0


def int8_share(model: Path, value: np.ndarray, *, int8_everywhere: bool = True) -> Int8Share:
    """Return how much of ``model`` runs in int8: as ARM runs it, or (False) as x86 does by itself.

    Raises:
        MeasurementError: a node multiplies but its count is not known here; nothing is left out in silence.
    """
    return share_of(executed_graph(model, value, int8_everywhere=int8_everywhere))


def share_of(graph: ExecutedGraph) -> Int8Share:
    """Return the MACs of an executed graph by type; see ``int8_share``."""
    macs = int8 = 0
    float_ops: dict[str, int] = {}
    for node in graph.nodes:
        count = node_macs(node)
        macs += count
        if runs_in_int8(node):
            int8 += count
        elif node.op not in ("QuantizeLinear", "DequantizeLinear"):
            float_ops[node.op] = float_ops.get(node.op, 0) + 1
    return Int8Share(macs, int8, dict(sorted(float_ops.items())))


def runs_in_int8(node: ExecutedNode) -> bool:
    """Whether a node computes on 8-bit activations: by its operator, or its first input."""
    # QLinearConcat's first inputs are scales.
    if node.op.startswith(("QLinear", "QGemm")):
        return True
    return bool(node.input_info) and node.input_info[0].dtype in ("int8", "uint8")


def node_macs(node: ExecutedNode) -> int:
    """Return the MACs of one node.

    A convolution is output elements x (input channels / groups) x kernel; a product, output elements x inner
    size.
    """
    if node.op in _UNCOUNTED:
        raise MeasurementError(
            f"no rule counts the MACs of operator {node.op}", expected="convolutions and products"
        )
    if node.op in _CONVOLUTIONS:
        weight = _constant(node, 3 if node.op == "QLinearConv" else 1)
        return node.output_info[0].elements * math.prod(weight[1:])
    if node.op in _PRODUCTS:
        left = node.input_info[0].shape
        return node.output_info[0].elements * left[-2 if node.attributes.get("transA") else -1]
    if node.op in _GEMMS:
        left = node.input_info[0].shape
        return node.output_info[0].elements * left[0 if node.attributes.get("transA") else 1]
    return 0


def _constant(node: ExecutedNode, position: int) -> tuple[int, ...]:
    name = node.inputs[position]
    if name in node.constants:
        return node.constants[name]
    if len(node.input_info) > position:  # weights computed in the graph, such as a DequantizeLinear's output
        return node.input_info[position].shape
    raise MeasurementError(f"the weight of a {node.op} is not in the graph", got=name)
