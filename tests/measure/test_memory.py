"""Arena and flash, against hand counts, a literal placement check and an exhaustive search."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pipeline.measure.activation import ALIGNMENT_BYTES, Lifetime, arena_of, lifetimes, peak_of
from pipeline.measure.flash import flash_of
from pipeline.measure.graph_profile import ExecutedGraph, ExecutedNode, TensorInfo, executed_graph
from tests.measure import graphs


def _node(inputs: tuple[str, ...], output: str, elements: int) -> ExecutedNode:
    return ExecutedNode("Erf", inputs, (output,), {}, (), (TensorInfo("int8", (elements,)),), {})


def _chain(sizes: list[int], skips: list[int]) -> ExecutedGraph:
    """Return a chain of nodes, each of which also reads the output of one some steps before it."""
    nodes = []
    for step, size in enumerate(sizes[1:], start=1):
        reads = {f"t{step - 1}", f"t{max(step - 1 - skips[step - 1], 0)}"}
        nodes.append(_node(tuple(sorted(reads)), f"t{step}", size))
    return ExecutedGraph(tuple(nodes), {"t0": TensorInfo("int8", (sizes[0],))}, (f"t{len(sizes) - 1}",))


@given(
    st.lists(st.integers(1, 300), min_size=2, max_size=12),
    st.lists(st.integers(0, 4), min_size=12, max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_no_two_live_tensors_overlap_and_all_lie_inside(sizes: list[int], skips: list[int]) -> None:
    graph = _chain(sizes, skips)
    arena = arena_of(graph)
    tensors = lifetimes(graph)
    for a, b in itertools.combinations(tensors, 2):
        if set(range(a.first, a.last + 1)) & set(range(b.first, b.last + 1)):
            at, bt = arena.offsets[a.name], arena.offsets[b.name]
            assert at + a.size_bytes <= bt or bt + b.size_bytes <= at
    for tensor in tensors:
        assert arena.offsets[tensor.name] % ALIGNMENT_BYTES == 0
        assert arena.offsets[tensor.name] + tensor.size_bytes <= arena.size_bytes
    assert peak_of(graph) <= arena.size_bytes <= sum(t.size_bytes + ALIGNMENT_BYTES for t in tensors)


def _least(tensors: list[Lifetime]) -> int:
    """Return the smallest arena over all orders of placing each tensor at its lowest free place."""
    best = 1 << 60
    for order in itertools.permutations(tensors):
        placed: list[tuple[Lifetime, int]] = []
        for tensor in order:
            offset = 0
            for other, start in sorted(placed, key=lambda entry: entry[1]):
                together = other.first <= tensor.last and tensor.first <= other.last
                if together and start < offset + tensor.size_bytes and offset < start + other.size_bytes:
                    offset = start + other.size_bytes
            placed.append((tensor, offset))
        best = min(best, max(start + tensor.size_bytes for tensor, start in placed))
    return best


def test_a_skip_connection_is_planned_as_well_as_can_be() -> None:
    graph = _chain([64, 256, 128, 128, 64, 256], [0, 0, 1, 0, 0])
    assert arena_of(graph).size_bytes == _least(lifetimes(graph)) == peak_of(graph) == 512


def test_the_busiest_node_is_the_second_convolution(fp32: Path) -> None:
    graph = executed_graph(fp32, graphs.value())
    arena = arena_of(graph)
    assert graph.nodes[arena.busiest].op in ("Conv", "FusedConv")
    assert arena.size_bytes == 2 * 4 * graphs.CHANNELS * graphs.ROWS * graphs.COLUMNS


def test_flash_is_the_tensors_and_the_rest(fp32: Path, tmp_path: Path) -> None:
    found = flash_of(fp32)
    assert found.weight_bytes == 4 * (graphs.CHANNELS * 9 + graphs.CHANNELS**2 * 9)
    assert found.file_bytes == fp32.stat().st_size == found.weight_bytes + found.graph_bytes
    # Constants inside nodes are weights too, and four bits are half a byte.
    four = helper.make_tensor("w", TensorProto.INT4, [5], [1, 2, 3, 4, 5])
    nodes = [
        helper.make_node("Constant", [], ["w"], value=four),
        helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(np.ones(7, np.float32))),
    ]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("v", TensorProto.FLOAT, [7])])
    onnx.save(helper.make_model(graph), str(tmp_path / "constants.onnx"))
    assert flash_of(tmp_path / "constants.onnx").weight_bytes == 3 + 28


def test_weights_beside_the_file_count(fp32: Path, tmp_path: Path) -> None:
    model = onnx.load(str(fp32))
    onnx.save(
        model, str(tmp_path / "outside.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0
    )  # fmt: skip
    found = flash_of(tmp_path / "outside.onnx")
    assert found.weight_bytes == flash_of(fp32).weight_bytes
    sizes = [(tmp_path / name).stat().st_size for name in ("outside.onnx", "weights.bin")]
    assert found.file_bytes == sum(sizes)
