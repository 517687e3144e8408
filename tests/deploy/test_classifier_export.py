"""A student with its classifier: two outputs in one file, each equal to torch; what a run's folder must hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pipeline.config import ExportConfig
from pipeline.deploy import int8
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.onnx_export import export_student
from pipeline.deploy.parity import check_parity, log_mel_inputs
from pipeline.deploy.sessions import open_session, run_session
from pipeline.errors import MissingArtifactError, WeightsError
from pipeline.students.classifier import WithClassifier, read_classifier, save_classifier
from tests.deploy import tiny

CLASSES = ["angry", "happy", "sad"]


@pytest.fixture(scope="module")
def network() -> WithClassifier:
    torch.manual_seed(3)
    return WithClassifier(tiny.TinyStudent(), nn.Linear(tiny.DIM, len(CLASSES))).eval()


@pytest.fixture(scope="module")
def exported(network: WithClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "student.onnx"
    metadata = replace(tiny.metadata(), extra={"classes": json.dumps(CLASSES)})
    export_student(network, path, metadata=metadata)
    return path


def test_both_outputs_equal_torch_at_other_lengths_and_batches(
    network: WithClassifier, exported: Path
) -> None:
    inputs = log_mel_inputs(tiny.noise_rows())
    check_parity(network.student, exported, inputs, tolerance=1e-4)
    parity = check_parity(network.logits, exported, inputs, tolerance=1e-4, output=1)
    assert len(parity.shapes) == len(inputs)
    graph = onnx.load(str(exported)).graph
    found = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in graph.output}
    assert found == {"embedding": ["batch", tiny.DIM], "logits": ["batch", len(CLASSES)]}
    assert json.loads(metadata_props.read(exported)["classes"]) == CLASSES


def test_int8_files_keep_both_outputs(exported: Path, tmp_path: Path) -> None:
    rows = tiny.log_mels(32)[:, None]
    given = CalibrationRows(rows[:16], rows[16:], "validation")
    int8.quantise(exported, tmp_path, rows=given, config=ExportConfig(), metadata=tiny.metadata())
    for name in ("student_s8s8.onnx", "student_u8s8.onnx"):
        quantised, float32 = open_session(tmp_path / name), open_session(exported)
        got, want = (
            np.concatenate([run_session(s, rows[[i]], 1) for i in range(32)]) for s in (quantised, float32)
        )
        assert got.shape == (32, len(CLASSES))
        assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.98


def test_a_run_s_classifier_is_read_back_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    layer = nn.Linear(5, len(CLASSES))
    save_classifier(tmp_path, layer, CLASSES)
    found, classes = read_classifier(tmp_path, 5)
    assert classes == CLASSES
    assert torch.equal(found.weight, layer.weight)
    with pytest.raises(WeightsError, match=r"weight \(3, 6\)"):
        read_classifier(tmp_path, 6)
    with pytest.raises(MissingArtifactError, match="no classifier"):
        read_classifier(tmp_path / "other", 5)
