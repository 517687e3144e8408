"""Where symbolic shape inference gives up, onnxruntime saves its graph and weights in the current folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.deploy import int8_graph


def graph_that_defeats_inference(path: Path) -> Path:
    """Write a graph of an operator that onnxruntime's inference knows nothing of."""
    nodes = [
        helper.make_node("Unknown", ["sound"], ["odd"], domain="nobody.knows"),
        helper.make_node("MatMul", ["odd", "W"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes, "odd", [helper.make_tensor_value_info("sound", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((4, 2), np.float32), "W")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nobody.knows", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def test_the_current_folder_stays_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert not int8_graph._symbolic_shapes_work(graph_that_defeats_inference(tmp_path / "odd.onnx"))
    assert list(work.iterdir()) == []
    assert Path.cwd() == work
