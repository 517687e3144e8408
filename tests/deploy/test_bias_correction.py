"""Corrected biases: the mean error of every int8 layer on the calibration rows is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from pipeline.config import ExportConfig
from pipeline.deploy.bias_correction import correct
from pipeline.deploy.fidelity import embed_rows
from pipeline.deploy.int8_graph import calibrate, write_quantised
from tests.deploy import onnx_nets

LIMIT = 0.5


@pytest.mark.parametrize("ops", ["conv_matmul", "all"])
def test_mean_errors_go_and_nothing_but_biases_changes(
    tmp_path: Path, ops: Literal["all", "conv_matmul"]
) -> None:
    inputs = onnx_nets.rows(64)
    fp32 = onnx_nets.chain(tmp_path / "fp32.onnx", outlier=60.0)
    calibrated = calibrate(fp32, tmp_path, inputs, ExportConfig())
    plain, mended = tmp_path / "plain_s8s8.onnx", tmp_path / "mended_s8s8.onnx"
    write_quantised(calibrated, plain, "s8s8", ops)
    before = onnx_nets.weights(calibrated.model)
    corrected = correct(calibrated, tmp_path, inputs, ops=ops)
    write_quantised(corrected, mended, "s8s8", ops)
    want = embed_rows(fp32, inputs)
    errors = [np.abs((embed_rows(path, inputs) - want).mean(axis=0)) for path in (plain, mended)]
    step = np.ptp(want) / 255
    assert errors[1].max() < step
    assert errors[1].mean() < LIMIT * errors[0].mean()

    after = onnx_nets.weights(corrected.model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed <= {"first.bias", "second.bias", "third.bias", "last.bias"}
    assert "second.bias" in changed
    assert all(np.array_equal(v, onnx_nets.weights(calibrated.model)[n]) for n, v in before.items())


def test_layers_in_float_keep_their_bias(tmp_path: Path) -> None:
    inputs = onnx_nets.rows(32)
    fp32 = onnx_nets.chain(tmp_path / "fp32.onnx", outlier=60.0)
    calibrated = calibrate(fp32, tmp_path, inputs, ExportConfig())
    corrected = correct(calibrated, tmp_path, inputs, ops="conv_matmul", keep_float=("second", "third"))
    before, after = onnx_nets.weights(calibrated.model), onnx_nets.weights(corrected.model)
    for name in ("second.bias", "third.bias"):
        np.testing.assert_array_equal(before[name], after[name])
    assert not np.array_equal(before["first.bias"], after["first.bias"])
