"""Deploy forms as files: equal to the student, float islands left in float, all convolutions in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pipeline.config import ExportConfig, LogMelConfig, StudentConfig
from pipeline.deploy.deploy_form import write_deploy_form
from pipeline.deploy.graph_islands import islands
from pipeline.deploy.graph_pooling import pool_means
from pipeline.deploy.int8_graph import calibrate, write_quantised
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.sessions import open_session, run_session
from pipeline.measure.graph_profile import executed_graph
from pipeline.measure.int8_share import share_of
from pipeline.students.checker import measure_statistics
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from tests.deploy.raw_clips import MEAN, MELS, STD, RawClips

METADATA = ExportMetadata(LogMelConfig(mels=MELS), student="micronet_m0", mean=MEAN, std=STD)


def _clips(batch: int, frames: int) -> np.ndarray:
    return RawClips(MELS)(batch, frames).numpy()


def _student(name: str, width: float) -> NormalisedStudent:
    torch.manual_seed(0)
    student = NormalisedStudent(
        build_student(StudentConfig(name=name, width=width), MELS), mean=MEAN, std=STD
    )
    measure_statistics(student, RawClips(MELS))
    return student


@pytest.fixture(scope="module")
def form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("form") / "student_deploy.onnx"
    shapes = [_clips(batch, frames) for batch, frames in ((1, 33), (3, 100))]
    # Raises where the file is not the student, at lengths and batches that the export does not see.
    parity = write_deploy_form(
        _student("micronet_m0", 0.5), path, shapes, metadata=METADATA, opset=20, tolerance=1e-4
    )
    assert parity is not None and len(parity.shapes) == 2
    return path


@pytest.fixture(scope="module")
def quantised(form: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("int8")
    calibrated = calibrate(form, work, _clips(8, 64), ExportConfig())
    write_quantised(calibrated, work / "s8s8.onnx", "s8s8", "all")
    return work / "s8s8.onnx"


def test_a_student_that_is_fast_as_it_is_has_no_deploy_form(tmp_path: Path) -> None:
    path = tmp_path / "student_deploy.onnx"
    student = _student("cp_mobile_6k", 1.0)
    assert write_deploy_form(student, path, [], metadata=METADATA, opset=20, tolerance=1e-4) is None
    assert not path.exists()


def test_shift_max_stays_in_float_and_every_convolution_is_int8(form: Path, quantised: Path) -> None:
    assert islands(onnx.load(str(form)).graph)
    found = share_of(executed_graph(quantised, _clips(1, 64)))
    assert {"Max", "Mul", "Add", "FusedGemm"} <= set(found.float_ops)
    assert not {"Conv", "FusedConv"} & set(found.float_ops)


def test_int8_runs_at_other_lengths_and_batches(form: Path, quantised: Path) -> None:
    for batch, frames in ((2, 21), (1, 130)):
        rows = _clips(batch, frames)
        got, want = (run_session(open_session(path), rows) for path in (quantised, form))
        assert got.shape == want.shape and np.isfinite(got).all()


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_spatial_mean_becomes_a_pooling_and_gives_the_mean(tmp_path: Path, keepdims: int) -> None:
    path = tmp_path / "mean.onnx"
    shape: list[str | int | None] = ["batch", 3, 5, "time"]
    pooled: list[str | int | None] = ["batch", 3, 1, 1] if keepdims else ["batch", 3]
    graph = helper.make_graph(
        [
            helper.make_node("Abs", ["x"], ["y"]),
            helper.make_node("ReduceMean", ["y", "axes"], ["z"], name="mean", keepdims=keepdims),
            helper.make_node("ReduceMean", ["y", "one"], ["other"], name="over_mels", keepdims=0),
        ],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("z", TensorProto.FLOAT, pooled),
            helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", 3, "time"]),
        ],
        [
            numpy_helper.from_array(np.array([-1, 2]), "axes"),
            numpy_helper.from_array(np.array([2]), "one"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    assert pool_means(path) == 1
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 9)).astype(np.float32)
    got = run_session(open_session(path), x)
    assert np.allclose(got, np.abs(x).mean(axis=(2, 3), keepdims=bool(keepdims)), atol=1e-6)
