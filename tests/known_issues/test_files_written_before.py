"""A quantised file depended on those written before it: the quantiser narrowed the ranges that it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.config import ExportConfig
from pipeline.deploy.int8_graph import Calibrated, Ops, calibrate, write_quantised
from tests.deploy import onnx_nets


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    folder = tmp_path_factory.mktemp("ranges")
    return calibrate(onnx_nets.chain(folder / "fp32.onnx"), folder, onnx_nets.rows(32), ExportConfig())


def written(calibrated: Calibrated, path: Path, ops: Ops) -> dict[str, np.ndarray]:
    write_quantised(calibrated, path, "s8s8", ops)
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}


def test_a_file_is_the_same_whatever_was_written_before(calibrated: Calibrated, tmp_path: Path) -> None:
    first = written(calibrated, tmp_path / "a.onnx", "conv_matmul")
    written(calibrated, tmp_path / "b.onnx", "all")
    again = written(calibrated, tmp_path / "c.onnx", "conv_matmul")
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_products_alone_spend_no_integers_on_what_a_relu_throws_away(
    calibrated: Calibrated, tmp_path: Path
) -> None:
    """In the net the first and second convolution have a ReLU behind them, the third has none."""
    stored = written(calibrated, tmp_path / "products.onnx", "conv_matmul")
    assert stored["a_zero_point"] == stored["b_zero_point"] == -128
    low, high = calibrated.ranges.data["c"].range_value
    assert low < 0 < high
    assert float(stored["c_scale"]) == pytest.approx(((high - low) / 255).item(), rel=1e-5)
