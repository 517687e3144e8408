"""Bias correction: the mean error that int8 puts on each channel is taken off the layer's bias.

Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, ICCV 2019, section 4.2, in
its empirical form (their appendix D): layer by layer from the input, each measured with those before it corrected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float
from onnx import numpy_helper

from pipeline.deploy.calibration import BATCH_ROWS
from pipeline.deploy.int8_graph import Calibrated, Ops, write_quantised
from pipeline.deploy.layers import float_outputs

# Means over 64 maps of some hundred positions each are known far better than one step of int8.
ROWS = 64


def correct(
    calibrated: Calibrated,
    work: Path,
    log_mels: Float[np.ndarray, "rows 1 mels frames"],
    *,
    ops: Ops,
    keep_float: Sequence[str] = (),
    int16: Sequence[str] = (),
) -> Calibrated:
    """Return the calibrated graph with corrected float biases; quantised as said, its layers err by 0 on average.

    Convolutions and Gemms with constant weights that no other layer shares are corrected. Ranges stay as they are.

    Args:
        calibrated: graph and ranges; its file is not changed.
        work: folder of the corrected graph.
        log_mels: calibration rows; the first 64 are used.
        ops, keep_float, int16: as for ``write_quantised``.
    """
    rows = log_mels[:ROWS]
    model = onnx.load(str(calibrated.model))
    correctable = [node for node in _correctable(model.graph) if node.name not in set(keep_float)]
    for node in correctable:
        _give_bias(model.graph, node)
    corrected = work / "corrected.onnx"
    onnx.save(model, str(corrected))
    found = replace(calibrated, model=corrected)
    targets = _channel_means(corrected, rows, [node.output[0] for node in correctable])
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        quantised = Path(scratch) / "quantised.onnx"
        write_quantised(found, quantised, "s8s8", ops, keep_float, int16=int16)
        trial = onnx.load(str(quantised))
        for node in correctable:
            # An activation behind the layer is folded into its Q/DQ, and its tensor's name becomes the layer's.
            given = next(n for n in trial.graph.node if n.name == node.name).output[0]
            error = _channel_means(quantised, rows, [given])[given] - targets[node.output[0]]
            _add_to_float_bias(model.graph, node, -error)
            _add_to_int32_bias(trial.graph, node.name, -error)
            onnx.save(trial, str(quantised))
    onnx.save(model, str(corrected))
    return found


def _correctable(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    constants = {i.name for i in graph.initializer}
    users: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    return [
        node
        for node in graph.node
        if node.op_type in ("Conv", "Gemm")
        and all(name in constants for name in node.input[1:] if name)
        and all(users[name] == 1 for name in node.input[2:] if name)
    ]


def _give_bias(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    if len(node.input) > 2 and node.input[2]:
        return
    weights = next(i for i in graph.initializer if i.name == node.input[1])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    channels = weights.dims[0] if node.op_type == "Conv" or transposed else weights.dims[1]
    name = f"{node.name}_bias_correction"
    graph.initializer.append(numpy_helper.from_array(np.zeros(channels, np.float32), name))
    del node.input[2:]
    node.input.append(name)


def _channel_means(path: Path, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return each tensor's mean for every channel (axis 1), before any Q/DQ that follows it."""
    sums: dict[str, np.ndarray] = {}
    for start in range(0, len(rows), BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        for name, value in float_outputs(path, part, tuple(names)).items():
            axes = tuple(axis for axis in range(value.ndim) if axis != 1)
            mean = value.mean(axis=axes, dtype=np.float64) * len(part) / len(rows)
            sums[name] = sums.get(name, 0.0) + mean
    return sums


def _add_to_float_bias(graph: onnx.GraphProto, node: onnx.NodeProto, added: np.ndarray) -> None:
    tensor = next(i for i in graph.initializer if i.name == node.input[2])
    bias = numpy_helper.to_array(tensor) + added
    tensor.CopyFrom(numpy_helper.from_array(bias.astype(np.float32), tensor.name))


def _add_to_int32_bias(graph: onnx.GraphProto, name: str, added: np.ndarray) -> None:
    """Add to the bias of the quantised node called ``name``: int32 codes, or float where it was left so."""
    node = next(n for n in graph.node if n.name == name)
    constants = {i.name: i for i in graph.initializer}
    if node.input[2] in constants:
        tensor = constants[node.input[2]]
        bias = (numpy_helper.to_array(tensor) + added).astype(np.float32)
    else:
        dequantise = next(n for n in graph.node if node.input[2] in n.output)
        scale = numpy_helper.to_array(constants[dequantise.input[1]])
        tensor = constants[dequantise.input[0]]
        codes = numpy_helper.to_array(tensor) + np.rint(added / scale)
        limits = np.iinfo(np.int32)
        bias = np.clip(codes, limits.min, limits.max).astype(np.int32)
    tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
