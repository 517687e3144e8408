"""Bias correction: the mean error that int8 puts on each channel is taken off the layer's bias.

Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, ICCV 2019, section 4.2, in
its empirical form (their appendix D): layer by layer from the input, each measured with those before it corrected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float
from onnx import numpy_helper

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
    nodes = [node for node in _correctable(model.graph) if node.name not in set(keep_float)]
    for node in nodes:
        _give_bias(model.graph, node, _channels(model.graph, node))
    corrected = work / "corrected.onnx"
    onnx.save(model, str(corrected))
    found = replace(calibrated, model=corrected)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        quantised = Path(scratch) / "quantised.onnx"
        write_quantised(found, quantised, "s8s8", ops, keep_float, int16=int16)
        for node, error in _errors(corrected, nodes, quantised, rows):
            _add_to_bias(model.graph, node.name, -error)
    onnx.save(model, str(corrected))
    return found


def correct_file(fp32: Path, path: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"]) -> None:
    """Correct the biases of the file at ``path`` in place; its layers have the names that they have in ``fp32``.

    Args:
        fp32: the float file.
        path: a file whose weights are quantised, its biases float32 or int32 behind a DequantizeLinear.
        log_mels: training rows; the first 64 are used.
    """
    whole = onnx.load(str(fp32))
    nodes = _correctable(whole.graph)
    trial = onnx.load(str(path))
    by_name = {node.name: node for node in trial.graph.node}
    for node in nodes:
        _give_bias(trial.graph, by_name[node.name], _channels(whole.graph, node))
    onnx.save(trial, str(path))
    for _ in _errors(fp32, nodes, path, log_mels[:ROWS]):
        pass


def _errors(
    fp32: Path, nodes: Sequence[onnx.NodeProto], path: Path, rows: np.ndarray
) -> Iterator[tuple[onnx.NodeProto, np.ndarray]]:
    """Yield each layer and its mean error by channel, the errors before it taken off the biases of ``path``."""
    targets = _channel_means(fp32, rows, [node.output[0] for node in nodes])
    trial = onnx.load(str(path))
    for node in nodes:
        # An activation behind the layer is folded into its Q/DQ, and its tensor's name becomes the layer's.
        given = next(n for n in trial.graph.node if n.name == node.name).output[0]
        error = _channel_means(path, rows, [given])[given] - targets[node.output[0]]
        _add_to_bias(trial.graph, node.name, -error)
        onnx.save(trial, str(path))
        yield node, error


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


def _channels(graph: onnx.GraphProto, node: onnx.NodeProto) -> int:
    weights = next(i for i in graph.initializer if i.name == node.input[1])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return int(weights.dims[0] if node.op_type == "Conv" or transposed else weights.dims[1])


def _give_bias(graph: onnx.GraphProto, node: onnx.NodeProto, channels: int) -> None:
    if len(node.input) > 2 and node.input[2]:
        return
    name = f"{node.name}_bias_correction"
    graph.initializer.append(numpy_helper.from_array(np.zeros(channels, np.float32), name))
    del node.input[2:]
    node.input.append(name)


def _channel_means(path: Path, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return each tensor's mean for every channel (axis 1), before any Q/DQ that follows it."""
    values = float_outputs(path, rows, tuple(names))
    return {
        name: value.mean(axis=tuple(axis for axis in range(value.ndim) if axis != 1), dtype=np.float64)
        for name, value in values.items()
    }


def _add_to_bias(graph: onnx.GraphProto, name: str, added: np.ndarray) -> None:
    """Add to the bias of the node called ``name``: float32, or int32 codes behind a DequantizeLinear."""
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
