"""Portable steps: both ways to round a product or a sum agree, means do not depend on the order of their terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.config import ExportConfig
from pipeline.deploy.int8_graph import calibrate, write_quantised
from pipeline.deploy.portable_steps import made_portable, portable_steps, settle, settle_file
from tests.deploy import onnx_nets

INTEGERS = np.arange(-128, 128)
# Steps and zero points of both inputs and of the output: the 18th SiLU of a trained MobileViT v2 0.5.
SILU = ((0.08675971627235413, -8), (0.0039215367287397385, -128), (0.047041669487953186, -122))
STEPS = [
    SILU,
    ((0.05, 3), (0.0311, -20), (0.0125, 0)),
    ((0.5, 0), (0.25, 0), (0.25, 1)),
    ((0.0123, -128), (0.04, 127), (0.0071, -3)),
    ((0.074968025, 9), (0.00036107315, 13), (0.07510372, 9)),
]


def layer(kind: str, steps: tuple[tuple[float, int], ...]) -> onnx.ModelProto:
    """A Q/DQ product or sum of two inputs."""
    floats, stored, nodes = TensorProto.FLOAT, [], []
    for name, (step, zero) in zip(("a", "b", "out"), steps, strict=True):
        stored += [
            numpy_helper.from_array(np.float32(step).reshape(()), f"{name}_scale"),
            numpy_helper.from_array(np.int8(zero).reshape(()), f"{name}_zero_point"),
        ]
        rounds = [f"{name}_scale", f"{name}_zero_point"]
        given = "float_out" if name == "out" else name
        nodes += [
            helper.make_node("QuantizeLinear", [given, *rounds], [f"{name}_q"], f"{name}_quantize"),
            helper.make_node(
                "DequantizeLinear", [f"{name}_q", *rounds], [f"{name}_dq"], f"{name}_dequantize"
            ),
        ]
    nodes.insert(4, helper.make_node(kind, ["a_dq", "b_dq"], ["float_out"], "layer"))
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info(n, floats, ["n"]) for n in ("a", "b")],
        [helper.make_tensor_value_info("out_dq", floats, ["n"])], stored,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def step_of(model: onnx.ModelProto, name: str) -> np.float32:
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return np.float32(found[f"{name}_scale"].item())


def rounded(kind: str, model: onnx.ModelProto, zeros: tuple[int, ...], fused: bool) -> np.ndarray:
    """All pairs' outputs in float32 as the kernels compute them; ``fused``: multiplied and added in one rounding."""
    a, b, out = (step_of(model, name) for name in ("a", "b", "out"))
    first, second = np.meshgrid(INTEGERS - zeros[0], INTEGERS - zeros[1], indexing="ij")

    def multiply_add(value: np.ndarray, scale: Any, more: Any) -> Any:
        # Float64 holds the product of two float32 numbers exactly.
        product = value.astype(np.float64) * np.float64(scale)
        return (np.float64(more) + (product if fused else np.float32(product))).astype(np.float32)

    if kind == "Mul":
        value = multiply_add(
            (first * second).astype(np.float32), np.float32(a * b / out), np.float32(zeros[2])
        )
    else:
        # As in ONNX Runtime's kernel: the integers as stored, what the zero points make in one constant.
        first, second = np.meshgrid(INTEGERS, INTEGERS, indexing="ij")
        ratios = np.float32(a / out), np.float32(b / out)
        constant = np.float32(zeros[2])
        for zero, ratio in zip(zeros, ratios, strict=False):
            constant = np.float32(multiply_add(np.float32(-zero), ratio, constant))
        begun = multiply_add(second.astype(np.float32), ratios[1], constant)
        value = multiply_add(first.astype(np.float32), ratios[0], begun)
    return np.asarray(np.clip(np.rint(value), -128, 127))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", ["Mul", "Add"])
def test_both_ways_to_round_agree_for_every_pair_of_integers(
    kind: str, steps: tuple[tuple[float, int], ...]
) -> None:
    model = layer(kind, steps)
    zeros = tuple(zero for _, zero in steps)
    before = step_of(model, "out")
    settle(model)
    assert np.array_equal(rounded(kind, model, zeros, fused=True), rounded(kind, model, zeros, fused=False))
    assert 1 <= step_of(model, "out") / before < 1.07
    assert (step_of(model, "a"), step_of(model, "b")) == tuple(np.float32(step) for step, _ in steps[:2])
    assert portable_steps(model) == {}


def test_the_silu_that_made_arm_and_x86_differ_rounds_alike() -> None:
    """The bug: these three steps, in every clip."""
    zeros = tuple(zero for _, zero in SILU)
    model = layer("Mul", SILU)
    ways = [rounded("Mul", model, zeros, fused) for fused in (True, False)]
    assert (ways[0] != ways[1]).any()
    settle(model)
    ways = [rounded("Mul", model, zeros, fused) for fused in (True, False)]
    assert (ways[0] == ways[1]).all()


def test_what_is_left_alone_rounds_alike_already() -> None:
    """And a step that is changed had a pair of integers on which the two ways differ, or nearly did."""
    changed = 0
    for number in range(1, 60):
        steps = ((0.01 * number, 5), (0.0039215, -128), (0.0051 * number, -120))
        model = layer("Mul", steps)
        if portable_steps(model):
            changed += 1
            continue
        zeros = tuple(zero for _, zero in steps)
        fused, apart = (rounded("Mul", model, zeros, fused) for fused in (True, False))
        assert np.array_equal(fused, apart)
    assert 0 < changed < 59


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("kind", ["Mul", "Add"])
def test_what_is_summed_has_a_short_step_without_ties(kind: str, number: int) -> None:
    """A trained CP-Mobile's last sum had ties at each step of six bits, and kept a long one."""
    random = np.random.default_rng(number)
    first, second, share = (float(step) for step in random.uniform((0.004, 0.004, 0.5), (0.1, 0.1, 1.0)))
    steps = ((first, -128), (second, int(random.integers(-128, 128))), (share * (first + second), -120))
    model = layer(kind, steps)
    mean = helper.make_node("ReduceMean", ["out_dq", "axes"], ["mean"], "mean", keepdims=0)
    model.graph.node.append(mean)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "axes"))
    settle(model)
    zeros = tuple(zero for _, zero in steps)
    fused, apart = (rounded(kind, model, zeros, fused) for fused in (True, False))
    assert np.array_equal(fused, apart)
    mantissa, _ = np.frexp(np.float64(step_of(model, "out")))
    assert (mantissa * 2**12) % 1 == 0


def means(width: int) -> Callable[[Path], Path]:
    """A network that ends in a float mean of an int8 tensor."""

    def write(path: Path) -> Path:
        random = np.random.default_rng(3)
        weight = random.standard_normal((width, 1, 3, 3)).astype(np.float32)
        nodes = [
            helper.make_node("Conv", ["log_mel", "weight"], ["maps"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["maps"], ["rectified"], "relu"),
            helper.make_node("ReduceMean", ["rectified", "axes"], ["embedding"], "mean", keepdims=0),
        ]
        stored = [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        ]
        graph = helper.make_graph(
            nodes, "net",
            [helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["batch", 1, 16, "time"])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])], stored,
        )  # fmt: skip
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path)
        )
        return path

    return write


def test_a_mean_is_the_same_in_every_order(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).standard_normal((32, 1, 16, 32)).astype(np.float32)
    fp32 = means(8)(tmp_path / "fp32.onnx")
    calibrated = calibrate(fp32, tmp_path, inputs, ExportConfig())
    plain, settled = tmp_path / "plain.onnx", tmp_path / "settled.onnx"
    write_quantised(calibrated, plain, "s8s8", "all")
    write_quantised(made_portable(calibrated, tmp_path, "all"), settled, "s8s8", "all")
    settle_file(settled)

    random, differ = np.random.default_rng(1), []
    for path in (plain, settled):
        stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
        step = next(value for name, value in stored.items() if name in ("embedding_scale", "rectified_scale"))
        terms = random.integers(0, 256, (200, 512)).astype(np.float32) * np.float32(step.item())
        one_by_one = np.cumsum(terms, axis=1, dtype=np.float32)[:, -1]
        by_lanes = np.cumsum(terms.reshape(200, -1, 8), axis=1, dtype=np.float32)[:, -1].sum(
            axis=1, dtype=np.float32
        )
        differ.append(int((one_by_one != by_lanes).sum()))
    assert differ[0] > 100
    assert differ[1] == 0


@pytest.mark.parametrize("precision", ["s8s8", "u8s8"])
def test_a_settled_network_has_consistent_biases_and_nothing_left_to_do(
    tmp_path: Path, precision: str
) -> None:
    inputs = onnx_nets.rows(32)
    fp32 = onnx_nets.chain(tmp_path / "fp32.onnx")
    calibrated = calibrate(fp32, tmp_path, inputs, ExportConfig())
    portable = made_portable(calibrated, tmp_path, "all")
    path = tmp_path / "settled.onnx"
    write_quantised(portable, path, precision, "all")  # type: ignore[arg-type]
    settle_file(path)
    model = onnx.load(str(path))
    assert portable_steps(model) == {}
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        data, weight, bias = (stored[made_by[name].input[1]] for name in node.input)
        np.testing.assert_allclose(bias, data * weight, rtol=3e-6)
