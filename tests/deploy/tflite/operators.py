"""One small graph an operator and variant: (name, model). Opset 20, from ``x`` (1, 6, 12, 11) unless said."""

from __future__ import annotations

import numpy as np
import onnx

from tests.deploy.tflite.graphs import graph, node, rng


def _floats(*shape: int, seed: int = 2) -> np.ndarray:
    return rng(seed).standard_normal(shape).astype(np.float32)


def _ints(*numbers: int) -> np.ndarray:
    return np.asarray(numbers, np.int64)


def _conv(
    outs: int, kernel: tuple[int, ...], group: int = 1, bias: bool = True, **given: object
) -> onnx.ModelProto:
    shape = (1, 6, 12, 11) if len(kernel) == 2 else (1, 6, 12)
    constants = {"w": _floats(outs, 6 // group, *kernel)}
    if bias:
        constants["b"] = _floats(outs, seed=3)
    return graph([node("Conv", ["x", *constants], "y", group=group, **given)], constants, shape)


def _one(
    op: str, *names: str, constants: dict[str, np.ndarray] | None = None, **given: object
) -> onnx.ModelProto:
    return graph([node(op, ["x", *names], "y", **given)], constants)


def _with(op: str, array: np.ndarray, first: bool = False) -> onnx.ModelProto:
    operands = ["c", "x"] if first else ["x", "c"]
    return graph([node(op, operands, "y")], {"c": array})


def _residual(op: str) -> onnx.ModelProto:
    """Two operands of other scales, and the second broadcast over the map."""
    constants = {"w": _floats(6, 6, 1, 1), "axes": _ints(2, 3)}
    nodes = [
        node("Conv", ["x", "w"], "wide"),
        node("ReduceMean", ["wide", "axes"], "mean", keepdims=1),
        node(op, ["x", "mean"], "y"),
    ]
    return graph(nodes, constants)


def _squeeze_excite() -> onnx.ModelProto:
    constants = {
        "axes": _ints(2, 3), "w1": _floats(4, 6), "b1": _floats(4), "w2": _floats(6, 4), "b2": _floats(6, seed=5),
    }  # fmt: skip
    nodes = [
        node("ReduceMean", ["x", "axes"], "mean", keepdims=0),
        node("Gemm", ["mean", "w1", "b1"], "low", transB=1),
        node("Relu", ["low"], "relu"),
        node("Gemm", ["relu", "w2", "b2"], "high", transB=1),
        node("HardSigmoid", ["high"], "gate", alpha=1 / 6, beta=0.5),
        node("Unsqueeze", ["gate", "axes"], "map"),
        node("Mul", ["x", "map"], "y"),
    ]
    return graph(nodes, constants)


def _shuffle() -> onnx.ModelProto:
    """A channel shuffle as torch exports it: reshape, transpose, reshape; and a convolution after it."""
    constants = {"a": _ints(1, 2, 3, 12, 11), "b": _ints(1, 6, 12, 11), "w": _floats(4, 6, 1, 1)}
    nodes = [
        node("Reshape", ["x", "a"], "five"),
        node("Transpose", ["five"], "turned", perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["turned", "b"], "four"),
        node("Conv", ["four", "w"], "y"),
    ]
    return graph(nodes, constants)


def _split(sizes: tuple[int, ...]) -> onnx.ModelProto:
    names = [f"part{i}" for i in range(len(sizes))]
    nodes = [
        node("Split", ["x", "sizes"], names, axis=1),
        node("Concat", list(reversed(names)), "y", axis=1),
    ]
    return graph(nodes, {"sizes": _ints(*sizes)})


def _attention() -> onnx.ModelProto:
    """Softmax over frames, and the product of two computed matrices."""
    constants = {"a": _ints(1, 6, 132)}
    nodes = [
        node("Reshape", ["x", "a"], "rows"),
        node("Transpose", ["rows"], "columns", perm=[0, 2, 1]),
        node("MatMul", ["rows", "columns"], "scores"),
        node("Mul", ["scores", "small"], "scaled"),
        node("Softmax", ["scaled"], "shares", axis=-1),
        node("MatMul", ["shares", "rows"], "y"),
    ]
    return graph(nodes, {**constants, "small": np.float32(0.02)})


INTEGER: dict[str, onnx.ModelProto] = {
    "conv": _conv(8, (3, 3), pads=[1, 1, 1, 1]),
    "conv stride 2, uneven padding": _conv(8, (3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
    "conv causal padding": _conv(8, (3, 3), pads=[1, 2, 1, 0]),
    "conv no padding, stride 2": _conv(8, (3, 3), strides=[2, 2]),
    "conv more padding than same": _conv(8, (3, 3), pads=[2, 2, 2, 2]),
    "conv dilated": _conv(8, (3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
    "conv tall kernel": _conv(8, (5, 1), pads=[2, 0, 2, 0], strides=[2, 1]),
    "conv without bias": _conv(8, (1, 1), bias=False),
    "conv grouped": _conv(9, (3, 3), group=3, pads=[1, 1, 1, 1]),
    "conv depthwise": _conv(6, (3, 3), group=6, pads=[1, 1, 1, 1]),
    "conv depthwise, two a channel": _conv(12, (3, 3), group=6, pads=[1, 1, 1, 1], strides=[2, 2]),
    "conv of a sequence": _conv(8, (3,), pads=[1, 1], strides=[2]),
    "max pool": _one("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    "max pool, last part counts": _one("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "max pool padded": _one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average pool": _one("AveragePool", kernel_shape=[3, 2], strides=[2, 2]),
    "average pool, padding counted": _one(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "global average": _one("GlobalAveragePool"),
    "gemm": graph(
        [node("Gemm", ["x", "w", "b"], "y", transB=1)], {"w": _floats(5, 9), "b": _floats(5)}, (1, 9)
    ),
    "gemm, weights (in, out)": graph([node("Gemm", ["x", "w"], "y")], {"w": _floats(9, 5)}, (1, 9)),
    "matmul of three axes": graph([node("MatMul", ["x", "w"], "y")], {"w": _floats(9, 5)}, (1, 4, 9)),
    "attention": _attention(),
    "add a number": _with("Add", np.float32(1.5)),
    "a number less x": _with("Sub", np.float32(0.5), first=True),
    "add a vector of channels": _with("Add", _floats(6, 1, 1)),
    "multiply by a vector of channels": _with("Mul", _floats(1, 6, 1, 1)),
    "divide by a number": _with("Div", np.float32(3.5)),
    "maximum with a number": _with("Max", np.float32(0.7)),
    "add a broadcast": _residual("Add"),
    "subtract a broadcast": _residual("Sub"),
    "multiply by a broadcast": _residual("Mul"),
    "maximum": _residual("Max"),
    "minimum": _residual("Min"),
    "relu": _one("Relu"),
    "relu6": _one("Clip", "low", "high", constants={"low": np.float32(0), "high": np.float32(6)}),
    "clip": _one("Clip", "low", "high", constants={"low": np.float32(-1), "high": np.float32(2)}),
    "leaky relu": _one("LeakyRelu", alpha=0.1),
    "hard sigmoid": _one("HardSigmoid", alpha=1 / 6, beta=0.5),
    "sigmoid": _one("Sigmoid"),
    "tanh": _one("Tanh"),
    "softmax of channels": _one("Softmax", axis=1),
    "softmax of frames": _one("Softmax", axis=-1),
    "mean of the map": _one("ReduceMean", "axes", constants={"axes": _ints(2, 3)}, keepdims=0),
    "mean of frames": _one("ReduceMean", "axes", constants={"axes": _ints(-1)}, keepdims=1),
    "mean of bands, axis gone": _one("ReduceMean", "axes", constants={"axes": _ints(2)}, keepdims=0),
    "sum of frames": _one("ReduceSum", "axes", constants={"axes": _ints(3)}, keepdims=0),
    "greatest of frames": _one("ReduceMax", "axes", constants={"axes": _ints(3)}, keepdims=0),
    "flatten": _one("Flatten"),
    "reshape": _one("Reshape", "to", constants={"to": _ints(1, 0, -1)}),
    "transpose": _one("Transpose", perm=[0, 3, 1, 2]),
    "squeeze": _one("Squeeze", "axes", constants={"axes": _ints(0)}),
    "shuffle": _shuffle(),
    "split evenly": _split((2, 2, 2)),
    "split unevenly": _split((1, 3, 2)),
    "slice": _one(
        "Slice", "starts", "ends", "axes", "steps",
        constants={"starts": _ints(1, -5), "ends": _ints(6, 1000), "axes": _ints(1, 3), "steps": _ints(2, 1)},
    ),
    "gather channels": _one("Gather", "at", constants={"at": _ints(5, 0, 3, 3, -1)}, axis=1),
    "gather one frame": _one("Gather", "at", constants={"at": np.asarray(2, np.int64)}, axis=3),
    "pad": _one("Pad", "pads", constants={"pads": _ints(0, 0, 1, 2, 0, 0, 3, 0)}),
    "pad with a number": _one(
        "Pad", "pads", "fill", constants={"pads": _ints(0, 0, 1, 2, 0, 0, 3, 0), "fill": np.float32(-1.25)}
    ),
    "pad reflected": _one("Pad", "pads", constants={"pads": _ints(0, 0, 1, 2, 0, 0, 3, 0)}, mode="reflect"),
    "squeeze and excite": _squeeze_excite(),
}  # fmt: skip

# LiteRT computes it in fixed point of 16 bits, ONNX in float: two steps.
COARSE: dict[str, onnx.ModelProto] = {"hard swish": _one("HardSwish")}

FLOAT: dict[str, onnx.ModelProto] = {
    "instance norm": _one(
        "InstanceNormalization", "s", "b", constants={"s": _floats(6), "b": _floats(6, seed=4)}, epsilon=1e-5
    ),
    "layer norm": _one("LayerNormalization", "s", constants={"s": _floats(11)}, axis=-1),
    "square root of the absolute": graph([node("Abs", ["x"], "a"), node("Sqrt", ["a"], "y")]),
    "reciprocal": graph([node("Exp", ["x"], "e"), node("Reciprocal", ["e"], "y")]),
    "power": graph([node("Abs", ["x"], "a"), node("Pow", ["a", "two"], "y")], {"two": np.float32(1.5)}),
    "divide by a broadcast": graph(
        [
            node("Exp", ["x"], "e"),
            node("ReduceSum", ["e", "axes"], "s", keepdims=1),
            node("Add", ["s", "some"], "more"),
            node("Div", ["e", "more"], "y"),
        ],
        {"axes": _ints(1), "some": np.float32(20)},
    ),
    "expand": graph(
        [node("GlobalAveragePool", ["x"], "m"), node("Expand", ["m", "to"], "y")], {"to": _ints(1, 6, 3, 2)}
    ),
    "gelu": _one("Gelu"),
    "norm of the map": _one("ReduceL2", "axes", constants={"axes": _ints(2, 3)}, keepdims=1),
}
