"""What a TFLite file holds beside its arithmetic, whole students, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper

from pipeline.deploy.parity import centred_cosine
from pipeline.deploy.sessions import open_session, run_session
from pipeline.deploy.tflite.convert import convert
from pipeline.deploy.tflite.fixed_graph import at_shape, in_int8
from pipeline.deploy.tflite.graph import ConversionError
from tests.deploy import tiny
from tests.deploy.tflite import graphs
from tests.deploy.tflite.operators import INTEGER

FRAMES = 24


def opened(content: bytes) -> schema.ModelT:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))


def test_weights_lie_on_16_byte_boundaries() -> None:
    rows = graphs.inputs()
    content = convert(in_int8(INTEGER["conv grouped"], rows, mean=None, std=None), ends="int8").content
    model = schema.Model.GetRootAs(content)
    offsets = []
    for number in range(model.BuffersLength()):
        buffer = model.Buffers(number)
        if buffer.DataLength():
            data = buffer.DataAsNumpy()
            offsets.append(data.__array_interface__["data"][0] - np.frombuffer(content, np.uint8).ctypes.data)
    assert len(offsets) > 3
    assert all(offset % 16 == 0 for offset in offsets)


def test_a_student_keeps_names_metadata_and_values(fp32: Path, student: tiny.TinyStudent) -> None:
    made = convert(at_shape(fp32, FRAMES))
    model = opened(made.content)
    signature = model.signatureDefs[0]
    assert [s.name for s in signature.inputs] == [b"log_mel"]
    assert [s.name for s in signature.outputs] == [b"embedding"]
    entry = next(m for m in model.metadata if m.name == b"ossicle")
    said = json.loads(bytes(model.buffers[entry.buffer].data))
    written = {p.key: p.value for p in onnx.load(str(fp32)).metadata_props}
    assert said == written and said["ossicle.teacher_licence"] == "CC-BY-4.0"

    rows = tiny.log_mels(5)[:, None, :, :FRAMES]
    interpreter = Interpreter(model_content=made.content)
    runner = interpreter.get_signature_runner("serving_default")
    got = np.concatenate([runner(log_mel=row[None])["embedding"].copy() for row in rows])
    want = run_session(open_session(fp32), rows)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_normalisation_costs_the_input_no_precision(fp32: Path) -> None:
    """0 and the mean are integers of the input, and each integer means the same before and after normalisation."""
    rows = tiny.log_mels(64)[:, None]
    whole = in_int8(at_shape(fp32, FRAMES), rows, mean=tiny.MEAN, std=tiny.STD)
    made = convert(whole, ends="int8")
    assert made.input is not None and made.output is not None and made.float_nodes == ()
    scale, zero = made.input.scale[0], made.input.zero_point[0]
    assert abs(tiny.MEAN / scale - round(tiny.MEAN / scale)) < 1e-4
    assert scale * (-128 - zero) <= rows.min() + scale and scale * (127 - zero) >= min(rows.max(), 0) - scale
    constants = {i.name: numpy_helper.to_array(i) for i in whole.graph.initializer}
    # Sub and Div of every integer, through their own scales: the same integer comes out of both.
    nodes = {n.op_type: n for n in whole.graph.node if n.op_type in ("Sub", "Div")}
    integers = np.arange(-128, 128)
    values = scale * (integers - zero)
    for op in ("Sub", "Div"):
        quantise = next(n for n in whole.graph.node if n.input and n.input[0] == nodes[op].output[0])
        assert quantise.op_type == "QuantizeLinear"
        values = values - tiny.MEAN if op == "Sub" else values / tiny.STD
        found = np.rint(values / constants[quantise.input[1]]) + constants[quantise.input[2]]
        assert np.array_equal(found.astype(int), integers)

    got = graphs.run_tflite(made.content, rows, reference=True)
    assert centred_cosine(got, run_session(open_session(fp32), rows)) > 0.99


def test_a_log_mel_that_never_reaches_0_still_has_its_mean_among_the_integers(fp32: Path) -> None:
    rows = tiny.log_mels(16)[:, None] - 40.0
    made = convert(in_int8(at_shape(fp32, FRAMES), rows, mean=-45.0, std=tiny.STD), ends="int8")
    assert made.input is not None
    scale, zero = made.input.scale[0], made.input.zero_point[0]
    assert -128 <= round(-45.0 / scale) + zero <= 127
    assert abs(-45.0 / scale - round(-45.0 / scale)) < 1e-3


def test_a_file_of_mixed_precision_computes_floats_where_onnx_does(fp32: Path) -> None:
    rows = tiny.log_mels(32)[:, None]
    model = at_shape(fp32, FRAMES)
    whole = in_int8(model, rows, mean=None, std=None)
    # The first convolution in float again: its weights and its operand without their pairs.
    conv = next(n for n in whole.graph.node if n.op_type == "Conv")
    floats = {n.name: n for n in model.graph.node}[conv.name]
    known = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for position, name in enumerate(floats.input):
        if position:
            conv.input[position] = f"float.{name}"
            whole.graph.initializer.append(numpy_helper.from_array(known[name], f"float.{name}"))
    made = convert(whole)
    assert made.operators["DEQUANTIZE"] >= 2 and any(conv.name in name for name in made.float_nodes)
    want = graphs_of(whole, rows)
    got = graphs.run_tflite(made.content, rows, reference=True)
    assert made.output is not None
    assert np.rint(np.abs(got - want) / made.output.scale[0]).max() <= 1


def graphs_of(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    name = renamed.graph.input[0].name
    for node in renamed.graph.node:
        for position, used in enumerate(node.input):
            if used == name:
                node.input[position] = "input"
    renamed.graph.input[0].name = "input"
    return graphs.run_onnx(renamed, rows)


def test_an_unknown_operator_is_named_with_its_node() -> None:
    model = graphs.graph([graphs.node("Erf", ["x"], "y")])
    with pytest.raises(ConversionError, match="Erf 'Erf_y'"):
        convert(model)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (graphs.graph([graphs.node("Mod", ["x", "c"], "y", fmod=1)], {"c": np.float32(2)}), "Mod 'Mod_y'"),
        (
            graphs.graph(
                [graphs.node("Slice", ["x", "s", "e", "a", "t"], "y")],
                {n: np.asarray([v], np.int64) for n, v in (("s", -1), ("e", -100), ("a", 3), ("t", -1))},
            ),
            "negative step",
        ),
        (
            graphs.graph([graphs.node("MaxPool", ["x"], "y", kernel_shape=[2, 2], dilations=[2, 2])]),
            "dilated pool",
        ),
        (
            graphs.graph(
                [
                    graphs.node(
                        "AveragePool", ["x"], "y", kernel_shape=[3, 3], pads=[1, 0, 1, 0], strides=[2, 2]
                    )
                ]
            ),
            "neither counted",
        ),
        (
            graphs.graph(
                [graphs.node("Pad", ["x", "p"], "y", mode="edge")],
                {"p": np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
            ),
            "mode edge",
        ),
    ],
    ids=["mod", "slice", "pool", "average", "pad"],
)
def test_what_tflite_cannot_do_is_refused_by_name(model: onnx.ModelProto, words: str) -> None:
    with pytest.raises(ConversionError) as refused:
        convert(model)
    assert words in str(refused.value)


@pytest.mark.parametrize(("kind", "name"), [(np.uint8, "uint8"), (np.int16, "int16")])
def test_other_integers_are_refused(kind: type, name: str) -> None:
    nodes = [
        graphs.node("QuantizeLinear", ["x", "s", "z"], "q"),
        graphs.node("DequantizeLinear", ["q", "s", "z"], "y"),
    ]
    model = graphs.graph(nodes, {"s": np.float32(0.1), "z": kind(0)}, opset=21)
    with pytest.raises(ConversionError, match=name):
        convert(model)


def test_a_free_shape_and_float_ends_for_integers_are_refused(fp32: Path) -> None:
    with pytest.raises(ConversionError, match="fixed input shape"):
        convert(onnx.load(str(fp32)))
    with pytest.raises(ConversionError, match="not quantised"):
        convert(at_shape(fp32, FRAMES), ends="int8")


def test_hard_swish_stays_one_operator(tmp_path: Path) -> None:
    """ONNX Runtime takes it apart when it folds constants; a gate of another slope stays what it is."""
    nodes = [
        graphs.node("HardSwish", ["x"], "a"),
        graphs.node("HardSigmoid", ["a"], "g", alpha=0.25, beta=0.5),
        graphs.node("Mul", ["a", "g"], "y"),
    ]
    model = graphs.graph(nodes)
    fixed = at_shape(graphs.write(model, tmp_path / "model.onnx"), graphs.SHAPE[3])
    assert [n.op_type for n in fixed.graph.node] == ["Mul", "HardSwish", "HardSigmoid", "Mul"]
    rows = graphs.inputs(rows=2)
    got = graphs.run_tflite(convert(fixed).content, rows, reference=True)
    assert np.abs(got - graphs.run_onnx(model, rows)).max() < 1e-5


def test_a_second_output_is_kept_beside_the_first() -> None:
    model = graphs.graph([graphs.node("Relu", ["x"], "y"), graphs.node("Neg", ["y"], "z")])
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    content = convert(model).content
    rows = graphs.inputs(rows=1)
    runner = Interpreter(model_content=content).get_signature_runner("serving_default")
    got = runner(input=rows)
    assert np.array_equal(got["y"], np.maximum(rows, 0)) and np.array_equal(got["z"], -got["y"])


def test_two_inputs_are_refused() -> None:
    shape = [1, 2]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b")]
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    made = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "two", inputs, output)
    with pytest.raises(ConversionError, match="one input"):
        convert(helper.make_model(made))
