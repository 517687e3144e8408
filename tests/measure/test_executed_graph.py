"""MACs, int8 share and peak memory of the graph that runs, against hand counts and a second counter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_tool
import pytest
from onnx import helper

from pipeline.errors import MeasurementError
from pipeline.measure.activation import peak_activation_bytes, peak_of
from pipeline.measure.graph_profile import ExecutedGraph, ExecutedNode, TensorInfo
from pipeline.measure.int8_share import int8_share, node_macs, runs_in_int8
from pipeline.measure.model_cost import exact_costs
from tests.measure import graphs

MAP = graphs.CHANNELS * graphs.ROWS * graphs.COLUMNS


def test_macs_equal_the_hand_count_and_onnx_tool(fp32: Path) -> None:
    found = int8_share(fp32, graphs.value())
    assert found.macs == graphs.MACS
    assert found.int8_macs == 0
    graph = onnx_tool.Model(str(fp32)).graph
    graph.shape_infer({"log_mel": graphs.value()})
    graph.profile()
    convolutions = [node for node in graph.nodemap.values() if node.op_type == "Conv"]
    assert sum(node.macs[0] for node in convolutions) == found.macs


def test_products_count_their_inner_size(tmp_path: Path) -> None:
    weights = {"w": np.ones((40, 7), np.float32), "v": np.ones((9, 7), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "v"], ["y"], transB=1),
    ]
    path = graphs.save(tmp_path / "products.onnx", nodes, ("x", ["n", 40]), ("y", ["n", 9]), weights)
    assert int8_share(path, np.ones((3, 40), np.float32)).macs == 3 * 40 * 7 + 3 * 7 * 9


def test_a_fully_quantised_graph_runs_all_its_macs_in_int8(s8s8: Path) -> None:
    found = int8_share(s8s8, graphs.value())
    assert found.macs == graphs.MACS
    assert found.share == 1.0


def test_share_is_that_of_the_quantised_layers(fp32: Path, tmp_path: Path) -> None:
    weights = {
        "w": np.random.default_rng(0).standard_normal((4, 1, 3, 3)).astype(np.float32),
        "v": np.random.default_rng(1).standard_normal((4, 4, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["log_mel", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["y"], name="stays_float"),
    ]
    shape: list[int | str] = ["n", 4, graphs.MELS, "time"]
    source = graphs.save(
        tmp_path / "two.onnx", nodes, ("log_mel", ["n", 1, graphs.MELS, "time"]), ("y", shape), weights
    )
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(source), str(tmp_path / "part.onnx"), graphs._Calibration(), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, nodes_to_exclude=["stays_float"],
    )  # fmt: skip
    found = int8_share(tmp_path / "part.onnx", graphs.value())
    pixels = graphs.MELS * graphs.FRAMES
    assert (found.int8_macs, found.macs) == (pixels * 4 * 9, pixels * 4 * 9 + pixels * 4 * 4)
    assert "Erf" in found.float_ops


def test_a_quantised_operator_runs_in_int8_whatever_comes_first() -> None:
    scale, data = TensorInfo("float", ()), TensorInfo("int8", (1, 8))
    concat = ExecutedNode("QLinearConcat", ("s", "x"), ("y",), {}, (scale, data), (data,), {})
    pool = ExecutedNode("MaxPool", ("x",), ("y",), {}, (data,), (data,), {})
    mean = ExecutedNode("ReduceMean", ("x",), ("y",), {}, (scale,), (scale,), {})
    assert [runs_in_int8(node) for node in (concat, pool, mean)] == [True, True, False]


def test_an_operator_without_a_rule_is_refused() -> None:
    node = ExecutedNode("LSTM", ("x",), ("y",), {}, (), (TensorInfo("float", (1, 2)),), {})
    with pytest.raises(MeasurementError, match="LSTM"):
        node_macs(node)


def test_peak_is_two_maps_in_float_and_a_quarter_of_it_in_int8(fp32: Path, s8s8: Path) -> None:
    # The second convolution reads one map and writes another of the same size; nothing else is as large.
    assert peak_activation_bytes(fp32, graphs.value()) == 2 * MAP * 4
    assert peak_activation_bytes(s8s8, graphs.value()) == 2 * MAP


def test_a_skip_connection_keeps_its_tensor_alive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal((8, 8, 1, 1)).astype(np.float32) for n in ("p", "q")}
    nodes = [
        helper.make_node("Erf", ["x"], ["a"]),
        helper.make_node("Conv", ["a", "p"], ["b"]),
        helper.make_node("Erf", ["b"], ["c"]),
        helper.make_node("Sub", ["c", "a"], ["y"]),
    ]
    path = graphs.save(tmp_path / "skip.onnx", nodes, ("x", ["n", 8, 5, 6]), ("y", ["n", 8, 5, 6]), weights)
    # a, b and c (or a, c and y) are live at once; without the skip it would be two.
    assert peak_activation_bytes(path, np.ones((1, 8, 5, 6), np.float32)) == 3 * 8 * 5 * 6 * 4


def test_views_share_their_inputs_memory() -> None:
    big, small = TensorInfo("float", (10, 10)), TensorInfo("float", (5,))
    nodes = (
        ExecutedNode("Reshape", ("x",), ("v",), {}, (big,), (big,), {}),
        ExecutedNode("Erf", ("v",), ("y",), {}, (big,), (small,), {}),
    )
    assert peak_of(ExecutedGraph(nodes, {"x": big}, ("y",))) == 400 + 20


def test_exact_costs_are_the_same_every_time(s8s8: Path) -> None:
    first = exact_costs(s8s8, graphs.value())
    assert first == exact_costs(s8s8, graphs.value())
    assert first["file_kb"] == s8s8.stat().st_size / 1024
