"""Corrected biases: the mean error of every int8 layer on the calibration rows is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from pipeline.config import ExportConfig
from pipeline.deploy.bias_correction import correct
from pipeline.deploy.fidelity import Judge, embed_rows
from pipeline.deploy.int8_graph import calibrate, write_quantised
from pipeline.deploy.weight_only import write_weight_only
from tests.deploy import onnx_nets, tiny

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


def test_a_file_of_small_weights_is_corrected_in_place(tmp_path: Path) -> None:
    inputs = onnx_nets.rows(64)
    fp32 = onnx_nets.chain(tmp_path / "fp32.onnx")
    judge = Judge(fp32, inputs)
    files = {
        mended: write_weight_only(
            fp32, tmp_path / f"{mended}.onnx", 4, judge=judge, metadata=tiny.metadata(),
            log_mels=inputs if mended else None,
        )
        for mended in (False, True)
    }  # fmt: skip
    errors = [
        np.abs((embed_rows(tmp_path / f"{m}.onnx", inputs) - judge.reference).mean(axis=0)) for m in files
    ]
    assert errors[1].max() < 1e-4 < errors[0].max()
    assert files[True].fidelity.centred_cosine > files[False].fidelity.centred_cosine
    weights = [onnx_nets.weights(tmp_path / f"{m}.onnx") for m in files]
    changed = {name for name in weights[0] if not np.array_equal(weights[0][name], weights[1][name])}
    assert changed == {"first.bias", "second.bias", "third.bias", "last.bias"}
