"""Instructions counted by a node's place in the file were given to the node that ran at that place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.measure import arm_layers
from pipeline.measure.arm_layers import LayerCounts
from pipeline.measure.graph_profile import ExecutedGraph, executed_graph, write_optimised
from pipeline.measure.layers import layers_of
from stages import benchmark_layers
from stages.benchmark_models import Model

VALUE = np.ones((1, 4), np.float32)


@pytest.fixture
def branches(tmp_path: Path) -> Path:
    """Two branches, written a node of each in turn; ONNX Runtime runs one to its end, then the other."""
    nodes = [
        helper.make_node("Erf", ["x"], ["a"], "erf"),
        helper.make_node("Tanh", ["x"], ["b"], "tanh"),
        helper.make_node("Abs", ["a"], ["c"], "abs"),
        helper.make_node("Neg", ["b"], ["d"], "neg"),
        helper.make_node("Mul", ["c", "d"], ["y"], "mul"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "branches", ends[:1], ends[1:])
    path = tmp_path / "branches.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    return path


@pytest.fixture
def graph(branches: Path) -> ExecutedGraph:
    return executed_graph(branches, VALUE)


def test_a_nodes_place_is_that_of_the_file(branches: Path, graph: ExecutedGraph, tmp_path: Path) -> None:
    written, _ = write_optimised(branches, tmp_path / "optimised.onnx")
    assert [node.place for node in graph.nodes] != sorted(node.place for node in graph.nodes)
    for node in graph.nodes:
        assert written.graph.node[node.place].op_type == node.op
        assert tuple(written.graph.node[node.place].output) == node.outputs


def test_each_layer_gets_its_own_instructions(
    branches: Path, graph: ExecutedGraph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written, _ = write_optimised(branches, tmp_path / "optimised.onnx")
    cost = {"Erf": 10, "Tanh": 20, "Abs": 30, "Neg": 40, "Mul": 50}
    counts = LayerCounts("cpu", tuple(cost[node.op_type] for node in written.graph.node), 0, 0, 5)
    monkeypatch.setattr(arm_layers, "count", lambda *given, **settings: counts)
    model = Model(branches, VALUE, {"not_measured": {}})
    breakdowns = {model: layers_of(graph)}
    benchmark_layers._count(breakdowns, "cpu", None)
    assert {layer.op: layer.instructions for layer in breakdowns[model]} == cost
