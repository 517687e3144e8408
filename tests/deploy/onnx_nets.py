"""Hand-made ONNX nets whose int8 behaviour is known beforehand; no exporter, so they cost nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MELS, FRAMES = 16, 12


def rows(number: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Return (number, 1, MELS, FRAMES) float32 that differ in level, tilt and detail."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0.0, 1.0, (number, 1, 1, 1))
    tilt = rng.normal(0.0, 1.0, (number, 1, 1, 1)) * np.linspace(-1, 1, MELS)[None, None, :, None]
    detail = rng.normal(0.0, 0.7, (number, 1, MELS, FRAMES))
    return (scale * (level + tilt + detail)).astype(np.float32)


def save(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], dim: int) -> Path:
    """Write a graph from ``log_mel`` to ``embedding`` (batch, dim), opset 20, batch and time dynamic."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["batch", 1, MELS, "time"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dim])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def conv(name: str, source: str, target: str, groups: int = 1, pads: int = 1) -> onnx.NodeProto:
    return helper.make_node(
        "Conv", [source, f"{name}.weight", f"{name}.bias"], [target], name, pads=[pads] * 4, group=groups
    )


def chain(path: Path, seed: int = 0, *, outlier: float = 1.0, dead: float = 1.0) -> Path:
    """Write three convolutions (the second depthwise) with ReLU between, a mean over the map and a Gemm.

    Args:
        path: the file.
        seed: of the weights.
        outlier: factor on one channel of the first convolution, undone in the second: the float function is the
            same whatever it is, and a large one makes the activation between them terrible for int8.
        dead: factor on the third convolution's weights for a channel that never sounds: nothing to the float
            function, and a large one takes the int8 steps of all other weights, of this layer alone.
    """
    rng = np.random.default_rng(seed)
    spread = np.ones(8)
    spread[3] = outlier
    constants = {
        "first.weight": rng.normal(0, 0.4, (8, 1, 3, 3)) * spread[:, None, None, None],
        "first.bias": rng.normal(0, 0.1, 8) * spread,
        "second.weight": rng.normal(0, 0.4, (8, 1, 3, 3)) / spread[:, None, None, None],
        "second.bias": rng.normal(0, 0.1, 8),
        "third.weight": rng.normal(0, 0.3, (12, 8, 1, 1)),
        "third.bias": rng.normal(0, 0.1, 12),
        "last.weight": rng.normal(0, 0.4, (6, 12)),
        "last.bias": rng.normal(0, 0.1, 6),
    }
    if dead != 1.0:
        constants["second.weight"][5], constants["second.bias"][5] = 0.0, -0.01
        constants["third.weight"][:, 5] *= dead
    nodes = [
        conv("first", "log_mel", "a"),
        helper.make_node("Relu", ["a"], ["a.relu"], "relu_1"),
        conv("second", "a.relu", "b", groups=8),
        helper.make_node("Relu", ["b"], ["b.relu"], "relu_2"),
        conv("third", "b.relu", "c", pads=0),
        helper.make_node("GlobalAveragePool", ["c"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "last.weight", "last.bias"], ["embedding"], "last", transB=1),
    ]
    return save(path, nodes, {name: v.astype(np.float32) for name, v in constants.items()}, 6)


def weights(path: Path) -> dict[str, np.ndarray]:
    """Return the constants of a file by name."""
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(str(path)).graph.initializer}
