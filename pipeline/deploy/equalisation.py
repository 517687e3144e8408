"""Cross-layer equalisation: scales move between neighbouring layers, the float function stays the same.

Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, ICCV 2019. Between two
layers with nothing but a positively homogeneous operator (ReLU, max and mean pooling) between them, channel i of
the first is divided by s_i and the second's weights for it are multiplied by s_i. With one scale a channel for
weights, as here, it is the activation between them that gains; hence the second kind, by its calibrated range
(the idea of SmoothQuant, Xiao et al., ICML 2023, with equal shares).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from jaxtyping import Float
from onnx import numpy_helper

from pipeline.deploy.calibration import BATCH_ROWS
from pipeline.deploy.layers import float_outputs

HOMOGENEOUS = (
    "Relu",
    "LeakyRelu",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
)
SWEEPS = 40
CONVERGED = 1e-3
# Beyond it a channel that is nearly dead would be blown up until it fills the range with nothing.
LARGEST_SCALE = 1e3
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Two convolutions whose common channels may be rescaled; ``between`` is the tensor that the second takes."""

    first: onnx.NodeProto
    second: onnx.NodeProto
    between: str


def equalise(
    path: Path, *, by: Literal["weights", "activations"], log_mels: Float[np.ndarray, "rows 1 mels frames"]
) -> int:
    """Equalise the graph at ``path`` in place; return the number of pairs.

    Args:
        path: float32 graph, batch norms folded.
        by: s_i = sqrt(a_i / b_i), where b_i is the largest weight that the second has for channel i and a_i the
            largest of the first's weights (``weights``), or of the activation between them on the rows
            (``activations``); swept until all pairs agree.
        log_mels: calibration rows; ``weights`` does not look at them.
    """
    model = onnx.load(str(path))
    pairs = find_pairs(model.graph)
    constants = {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}
    # Ranges are those of the graph as it was, divided by each scale that is applied.
    ranges = _activation_ranges(path, pairs, log_mels) if by == "activations" else {}
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in pairs:
            given = ranges[pair.between] if by == "activations" else _weight_range(pair, constants)
            scale = _rescale(pair, constants, given)
            if by == "activations":
                ranges[pair.between] = given / scale
            moved = max(moved, float(np.abs(np.log(scale)).max()))
        if moved < CONVERGED:
            break
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))
    onnx.save(model, str(path))
    log.info("%s: %d pairs of layers equalised by %s", path.name, len(pairs), by)
    return len(pairs)


def find_pairs(graph: onnx.GraphProto) -> list[Pair]:
    """Return every pair of convolutions in line, in the graph's order.

    Each tensor between them feeds one node alone and is no output, and no weight is shared.
    """
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    constants = {i.name for i in graph.initializer}

    def own_weights(node: onnx.NodeProto) -> bool:
        return all(name in constants and len(consumers[name]) == 1 for name in node.input[1:] if name)

    pairs = []
    for first in graph.node:
        if first.op_type != "Conv" or not own_weights(first):
            continue
        tensor = first.output[0]
        while True:
            following = consumers.get(tensor, [])
            if tensor in outputs or len(following) != 1 or tensor not in following[0].input[:1]:
                break
            second = following[0]
            if second.op_type == "Conv":
                if own_weights(second):
                    pairs.append(Pair(first, second, tensor))
                break
            if second.op_type not in HOMOGENEOUS:
                break
            tensor = second.output[0]
    return pairs


def _rescale(pair: Pair, constants: dict[str, np.ndarray], first_range: np.ndarray) -> np.ndarray:
    """Apply one pair's scales and return them."""
    second_range = _input_range(pair, constants)
    usable = (first_range > 0) & (second_range > 0)
    scale: np.ndarray = np.ones(len(first_range), dtype=np.float64)
    scale[usable] = np.sqrt(first_range[usable] / second_range[usable])
    scale = np.clip(scale, 1 / LARGEST_SCALE, LARGEST_SCALE)
    # The common factor says nothing: a range per tensor absorbs it.
    scale = scale / np.exp(np.log(scale).mean())
    first, second = pair.first.input[1], pair.second.input[1]
    constants[first] = (constants[first] / _along(scale, constants[first])).astype(np.float32)
    if len(pair.first.input) > 2 and pair.first.input[2]:
        constants[pair.first.input[2]] = (constants[pair.first.input[2]] / scale).astype(np.float32)
    constants[second] = (constants[second] * _per_weight(pair, constants, scale)).astype(np.float32)
    return scale


def _per_weight(pair: Pair, constants: dict[str, np.ndarray], scale: np.ndarray) -> np.ndarray:
    """Return the scale of each (output, input in its group) of the second's weights, (out, in, 1, ...)."""
    outputs, width = constants[pair.second.input[1]].shape[:2]
    groups = len(scale) // width
    of_group = scale.reshape(groups, width)
    rows = np.repeat(of_group, outputs // groups, axis=0)
    shaped: np.ndarray = rows.reshape(*rows.shape, *[1] * (constants[pair.second.input[1]].ndim - 2))
    return shaped


def _input_range(pair: Pair, constants: dict[str, np.ndarray]) -> np.ndarray:
    """Return the largest weight that the second has for each of its input channels."""
    weights = _largest(constants[pair.second.input[1]], (0, 1))
    outputs, width = weights.shape
    channels = constants[pair.first.input[1]].shape[0]
    groups = channels // width
    found: np.ndarray = weights.reshape(groups, outputs // groups, width).max(axis=1).reshape(-1)
    return found


def _weight_range(pair: Pair, constants: dict[str, np.ndarray]) -> np.ndarray:
    return _largest(constants[pair.first.input[1]], (0,))


def _activation_ranges(path: Path, pairs: list[Pair], log_mels: np.ndarray) -> dict[str, np.ndarray]:
    names = tuple(dict.fromkeys(pair.between for pair in pairs))
    largest: dict[str, np.ndarray] = {}
    for start in range(0, len(log_mels) if names else 0, BATCH_ROWS):
        for name, value in float_outputs(path, log_mels[start : start + BATCH_ROWS], names).items():
            here = _largest(value, (1,))
            largest[name] = np.maximum(largest.get(name, here), here)
    return largest


def _along(scale: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return one scale an output channel, shaped for ``weights``."""
    shaped: np.ndarray = scale.reshape(-1, *[1] * (weights.ndim - 1))
    return shaped


def _largest(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """Return the largest magnitude over every axis but those ``kept``."""
    found: np.ndarray = np.abs(values).max(axis=tuple(a for a in range(values.ndim) if a not in kept))
    return found
