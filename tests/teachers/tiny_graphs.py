"""Small ONNX graphs written by hand, with what they compute known in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def projection(inputs: int, outputs: int, seed: int = 0) -> np.ndarray:
    """Return the (inputs, outputs) weights of the graphs."""
    draw = np.random.default_rng([seed, inputs, outputs]).standard_normal((inputs, outputs))
    return (draw / np.sqrt(inputs)).astype(np.float32)


def save(path: Path, nodes: list[onnx.NodeProto], shape: list[int | str], output: str,
         constants: dict[str, np.ndarray]) -> Path:  # fmt: skip
    """Write a graph of one input ``sound`` and one declared output."""
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("sound", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def waveform_graph(path: Path, samples: int, batch: int | str = "batch") -> Path:
    """sound (batch, samples) -> hidden = relu(sound W) (batch, 6) -> scores = sigmoid(logits = hidden V) (batch, 3)."""
    nodes = [
        helper.make_node("MatMul", ["sound", "W"], ["mixed"]),
        helper.make_node("Relu", ["mixed"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "V"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    constants = {"W": projection(samples, 6), "V": projection(6, 3)}
    return save(path, nodes, [batch, samples], "scores", constants)


def waveform_values(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return hidden and logits of (n, samples) windows, in float64."""
    hidden = np.maximum(windows.astype(np.float64) @ projection(windows.shape[1], 6), 0)
    return hidden, hidden @ projection(6, 3)


def patch_graph(path: Path, shape: list[int | str]) -> Path:
    """sound (batch, [1,] time, mel) or in the other order -> features: the patch pooled to (batch, 1, 2, 2)."""
    nodes = []
    last = "sound"
    if len(shape) == 3:
        nodes.append(helper.make_node("Unsqueeze", ["sound", "one"], ["image"]))
        last = "image"
    nodes.append(helper.make_node("AveragePool", [last], ["features"],
                                  kernel_shape=[int(n) // 2 for n in shape[-2:]],
                                  strides=[int(n) // 2 for n in shape[-2:]]))  # fmt: skip
    nodes.append(helper.make_node("Flatten", ["features"], ["flat"]))
    return save(path, nodes, shape, "flat", {"one": np.array([1], np.int64)})


def quantised_graph(path: Path, samples: int) -> Path:
    """sound (batch, samples) -> codes: its uint8 quantisation at scale 1/64, zero point 100 -> back = dequantised."""
    nodes = [
        helper.make_node("QuantizeLinear", ["sound", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["back"]),
    ]
    constants = {"scale": np.array(1 / 64, np.float32), "zero": np.array(100, np.uint8)}
    return save(path, nodes, ["batch", samples], "back", constants)
