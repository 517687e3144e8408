"""Every operator in integers and in float: LiteRT against ONNX Runtime on the same graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from pipeline.deploy.tflite.convert import HANDLERS, convert
from pipeline.deploy.tflite.fixed_graph import FLOAT_ONLY, in_int8
from tests.deploy.tflite import graphs
from tests.deploy.tflite.operators import COARSE, FLOAT, INTEGER

ALL = {**INTEGER, **COARSE, **FLOAT}


def shape_of(model: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)


@pytest.mark.parametrize("name", [*INTEGER, *COARSE])
def test_integers_are_onnx_runtimes_to_one_step(name: str) -> None:
    model = {**INTEGER, **COARSE}[name]
    rows = graphs.inputs(shape_of(model), rows=24)
    whole = in_int8(model, rows, mean=None, std=None)
    converted = convert(whole, ends="int8")
    assert converted.float_nodes == ()
    assert not {"QUANTIZE", "DEQUANTIZE"} & converted.operators.keys() or name in SCALES_OF_ITS_OWN
    for reference in (True, False):
        steps = graphs.steps_apart(converted, whole, rows, reference=reference)
        assert steps.max() <= (2 if name in COARSE or name in SEVERAL_ROUNDINGS else 1)
        # Roundings fall out differently at ties alone; a wrong scale or zero point moves every number.
        assert steps.mean() < 0.5


# TFLite's own scales for these results (and one operand's for the others) are then turned into ONNX's.
SCALES_OF_ITS_OWN = {
    "sigmoid", "tanh", "softmax of channels", "softmax of frames", "attention", "maximum", "minimum",
    "maximum with a number", "clip", "greatest of frames", "average pool, padding counted",
}  # fmt: skip
SEVERAL_ROUNDINGS = {"attention", "squeeze and excite"}


@pytest.mark.parametrize("name", ALL)
def test_floats_are_onnx_runtimes(name: str) -> None:
    model = ALL[name]
    rows = graphs.inputs(shape_of(model), rows=3)
    converted = convert(model)
    want = graphs.run_onnx(model, rows)
    got = graphs.run_tflite(converted.content, rows, reference=True)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 2e-5 * max(1.0, float(np.abs(want).max()))


@pytest.mark.parametrize("name", FLOAT)
def test_what_has_no_integers_is_float_between_quantise_and_dequantise(name: str) -> None:
    model = FLOAT[name]
    rows = graphs.inputs(rows=24)
    whole = in_int8(model, rows, mean=None, std=None)
    converted = convert(whole)
    want = graphs.run_onnx(whole, rows)
    got = graphs.run_tflite(converted.content, rows, reference=True)
    assert np.abs(got - want).max() <= 1e-2 * float(np.abs(want).max())


def test_every_operator_that_is_written_is_compared() -> None:
    seen = {node.op_type for model in ALL.values() for node in model.graph.node}
    aliases = {"GlobalMaxPool", "Identity", "Dropout", "Cast", "Neg", "Log"}
    assert HANDLERS.keys() - seen <= aliases
    assert HANDLERS.keys() >= FLOAT_ONLY


def test_gathered_channels_are_the_same_integers_by_a_convolution() -> None:
    model = INTEGER["gather channels"]
    rows = graphs.inputs(rows=6)
    whole = in_int8(model, rows, mean=None, std=None)
    plain, convolved = (convert(whole, ends="int8", gather_by_convolution=how) for how in (False, True))
    assert "GATHER" in plain.operators and "CONV_2D" not in plain.operators
    assert "CONV_2D" in convolved.operators and "GATHER" not in convolved.operators
    got = [graphs.run_tflite(made.content, rows, reference=True) for made in (plain, convolved)]
    assert np.array_equal(got[0], got[1])
