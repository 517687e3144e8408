"""ONNX files that no tool of ours wrote, and what they compute in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RATE_HZ, CHANNELS, KERNEL, STRIDE = 16_000, 12, 32, 16


def kernel(seed: int = 0) -> np.ndarray:
    """Return the filters (CHANNELS, 1, KERNEL) float32."""
    return np.random.default_rng(seed).standard_normal((CHANNELS, 1, KERNEL)).astype(np.float32)


def waveform_model(path: Path, samples: int | str = "samples", seed: int = 0, outputs: int = 1) -> Path:
    """Write a filter bank: mean over time of the rectified output of CHANNELS filters.

    Args:
        path: the file.
        samples: of its window; a word = any.
        seed: of the filters.
        outputs: 2 = the map before the mean is an output too, and the first one.
    """
    nodes = [
        helper.make_node("Unsqueeze", ["sound", "one"], ["column"]),
        helper.make_node("Conv", ["column", "filters"], ["filtered"], strides=[STRIDE]),
        helper.make_node("Relu", ["filtered"], ["map"]),
        helper.make_node("ReduceMean", ["map", "two"], ["vector"], keepdims=0),
    ]
    shapes = {"map": ["batch", CHANNELS, "time"], "vector": ["batch", CHANNELS]}
    names = ["map", "vector"] if outputs == 2 else ["vector"]
    graph = helper.make_graph(
        nodes,
        "filter_bank",
        [helper.make_tensor_value_info("sound", TensorProto.FLOAT, ["batch", samples])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in names],
        [
            numpy_helper.from_array(kernel(seed), "filters"),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("two", TensorProto.INT64, [1], [2]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def filter_bank(sound: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return what the model gives for ``sound`` (samples,): (CHANNELS,)."""
    frames = np.lib.stride_tricks.sliding_window_view(sound.astype(np.float64), KERNEL)[::STRIDE]
    return np.maximum(frames @ kernel(seed)[:, 0].T.astype(np.float64), 0.0).mean(axis=0)


def macs(samples: int) -> int:
    """Return the multiply-accumulates of one pass."""
    return CHANNELS * KERNEL * (1 + (samples - KERNEL) // STRIDE)
