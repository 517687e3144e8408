"""Each operator against ONNX's own reference implementation, forwards; gradients are torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline.errors import OssicleError
from pipeline.quantisation.graph import QuantisedGraph
from pipeline.quantisation.operators import OPERATORS

RNG = np.random.default_rng(11)


def noise(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X = noise(2, 6, 7, 9)
P = np.abs(noise(2, 6, 7, 9)) + 0.5
# Operator, inputs (the first is the graph's own), attributes.
CASES: list[tuple[str, list[np.ndarray], dict[str, Any]]] = [
    ("Conv", [X, noise(4, 3, 3, 2), noise(4)],
     {"group": 2, "strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 2]}),
    ("Conv", [X, noise(4, 6, 3, 3)], {"pads": [0, 1, 2, 1]}),
    ("Conv", [noise(2, 6, 9), noise(6, 1, 3), noise(6)], {"group": 6, "pads": [2, 0]}),
    ("ConvTranspose", [X, noise(6, 2, 3, 3), noise(2)],
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("Gemm", [noise(5, 4), noise(3, 4), noise(3)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [noise(4, 5), noise(4, 3)], {"transA": 1}),
    ("MatMul", [noise(2, 3, 4), noise(4, 5)], {}),
    ("MaxPool", [X], {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 0, 1, 2]}),
    ("AveragePool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [X], {"kernel_shape": [2, 2], "pads": [1, 0, 0, 0], "count_include_pad": 1}),
    ("GlobalAveragePool", [X], {}), ("GlobalMaxPool", [X], {}),
    ("ReduceMean", [X, ints(2, 3)], {"keepdims": 0}), ("ReduceMean", [X], {}),
    ("ReduceSum", [X, ints(-1)], {"keepdims": 1}), ("ReduceMax", [X, ints(2)], {"keepdims": 0}),
    ("ReduceMin", [X, ints(1)], {}), ("ReduceSumSquare", [X, ints(1)], {}), ("ReduceL1", [X, ints(1)], {}),
    ("ReduceL2", [X, ints(1, 2)], {}), ("ReduceLogSumExp", [X, ints(3)], {}),
    ("Clip", [X, np.float32(-0.5), np.float32(0.25)], {}), ("Clip", [X, np.float32(0)], {}),
    ("HardSigmoid", [X], {"alpha": 1 / 6, "beta": 0.5}), ("HardSwish", [X], {}), ("Relu", [X], {}),
    ("LeakyRelu", [X], {"alpha": 0.2}), ("Elu", [X], {}), ("PRelu", [X, noise(6, 1, 1)], {}),
    ("Sigmoid", [X], {}), ("Tanh", [X], {}), ("Erf", [X], {}), ("Softplus", [X], {}),
    ("Gelu", [X], {}), ("Gelu", [X], {"approximate": "tanh"}),
    ("Softmax", [X], {"axis": 1}), ("Softmax", [X], {}), ("LogSoftmax", [X], {"axis": 2}),
    ("Exp", [X], {}), ("Log", [P], {}), ("Sqrt", [P], {}), ("Reciprocal", [P], {}), ("Abs", [X], {}),
    ("Neg", [X], {}), ("Sign", [X], {}), ("Sin", [X], {}), ("Cos", [X], {}), ("Floor", [X], {}),
    ("Ceil", [X], {}), ("Round", [X], {}), ("Identity", [X], {}),
    ("Add", [X, noise(6, 1, 1)], {}), ("Sub", [X, noise(9)], {}), ("Mul", [X, noise(1)], {}), ("Div", [X, P], {}),
    ("Div", [ints(7, -7, 9), ints(2, 2, -4)], {}), ("Pow", [P, np.float32(2.5)], {}),
    ("Mod", [ints(7, -7), ints(3, 3)], {}),
    ("Min", [X, P, noise(9)], {}), ("Max", [X, noise(9)], {}), ("Sum", [X, P, X], {}),
    ("Equal", [ints(1, 2), ints(1, 3)], {}), ("Less", [X, P], {}), ("LessOrEqual", [X, P], {}),
    ("Greater", [X, P], {}), ("GreaterOrEqual", [X, P], {}),
    ("InstanceNormalization", [X, noise(6), noise(6)], {"epsilon": 1e-3}),
    ("LayerNormalization", [X, noise(7, 9), noise(7, 9)], {"axis": 2, "epsilon": 1e-3}),
    ("BatchNormalization", [X, noise(6), noise(6), noise(6), P[0, :, 0, 0]], {"epsilon": 1e-3}),
    ("Cast", [X], {"to": TensorProto.INT64}), ("Concat", [X, P], {"axis": 1}),
    ("ConstantOfShape", [ints(2, 3)], {"value": numpy_helper.from_array(np.array([2.5], np.float32))}),
    ("Expand", [noise(6, 1, 1), ints(2, 1, 4, 1)], {}), ("Flatten", [X], {"axis": 2}), ("Flatten", [X], {}),
    ("Gather", [X, ints(3, -1)], {"axis": 2}), ("Gather", [X, np.array(2, np.int64)], {"axis": 1}),
    ("Gather", [X, np.array([[0, 1], [2, 3]], np.int64)], {"axis": 1}),
    ("GatherElements", [noise(3, 4), np.array([[0, -1], [1, 2], [3, 0]], np.int64)], {"axis": 1}),
    ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(1.5)], {}),
    ("Pad", [X, ints(1, 2, 1, 0)], {"mode": "reflect", "axes": [2, 3]}),
    ("Pad", [X, ints(0, 0, 0, 1, 0, 0, 0, 2)], {"mode": "edge"}),
    ("Range", [np.array(2, np.int64), np.array(11, np.int64), np.array(3, np.int64)], {}),
    ("Reshape", [X, ints(0, -1, 9)], {}), ("Shape", [X], {"start": 1, "end": -1}), ("Size", [X], {}),
    ("Slice", [X, ints(1, -3), ints(100, -1), ints(2, 3), ints(2, 1)], {}),
    ("Slice", [X, ints(-1), ints(-100), ints(3), ints(-2)], {}),
    ("Split", [X, ints(1, 2, 3)], {"axis": 1}), ("Squeeze", [noise(1, 3, 1), ints(0, 2)], {}),
    ("Squeeze", [noise(1, 3, 1)], {}),
    ("Tile", [noise(2, 3), ints(2, 2)], {}), ("Transpose", [X], {"perm": [0, 3, 1, 2]}), ("Transpose", [X], {}),
    ("Unsqueeze", [noise(3, 4), ints(0, -1)], {}), ("Where", [noise(3) > 0, noise(3), noise(3)], {}),
    ("Not", [noise(4) > 0], {}), ("And", [noise(4) > 0, noise(4) > 0], {}), ("Or", [noise(4) > 0, noise(4) > 0], {}),
]  # fmt: skip
NOT_RUN_HERE = {"Constant", "Dropout"}


def one_node(operator: str, inputs: list[np.ndarray], attributes: dict[str, Any]) -> onnx.ModelProto:
    """Return a model of one node whose first input is the graph's and whose others are stored."""
    attributes = dict(attributes)
    names = [f"input_{place}" for place in range(len(inputs))]
    stored = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, inputs, strict=True)
    ][1:]
    if "axes" in attributes:
        stored.append(numpy_helper.from_array(ints(*attributes.pop("axes")), "axes"))
        names += ["", "axes"]
    outputs = 3 if operator == "Split" else 1
    made = [f"output_{place}" for place in range(outputs)]
    node = helper.make_node(operator, names, made, **attributes)
    kind = helper.np_dtype_to_tensor_dtype(inputs[0].dtype)
    given = helper.make_tensor_value_info(names[0], kind, inputs[0].shape)
    graph = helper.make_graph(
        [node], "one", [given], [helper.make_empty_tensor_value_info(n) for n in made], stored
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize(("operator", "inputs", "attributes"), CASES, ids=[case[0] for case in CASES])
def test_an_operator_gives_what_the_reference_gives(
    operator: str, inputs: list[np.ndarray], attributes: dict[str, Any]
) -> None:
    model = one_node(operator, inputs, attributes)
    want = ReferenceEvaluator(model).run(None, {"input_0": inputs[0]})[0]
    got = QuantisedGraph(model, {})(torch.from_numpy(np.asarray(inputs[0]))).numpy()
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_every_operator_is_compared() -> None:
    assert set(OPERATORS) - NOT_RUN_HERE == {case[0] for case in CASES}


def test_an_unknown_operator_is_named() -> None:
    model = one_node("Hardmax", [X], {})
    with pytest.raises(OssicleError, match="Hardmax"):
        QuantisedGraph(model, {})


@pytest.mark.parametrize(("operator", "attributes"), [
    ("Conv", {"auto_pad": "SAME_UPPER"}), ("AveragePool", {"kernel_shape": [2, 2], "pads": [1, 0, 0, 0]}),
])  # fmt: skip
def test_what_is_not_known_of_an_operator_is_refused(operator: str, attributes: dict[str, Any]) -> None:
    inputs = [X, noise(4, 6, 3, 3)] if operator == "Conv" else [X]
    graph = QuantisedGraph(one_node(operator, inputs, attributes), {})
    with pytest.raises(OssicleError):
        graph(torch.from_numpy(X))
