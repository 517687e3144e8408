"""Where training through the rounding starts: at the graph that calibration alone would ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pipeline.config import ExportConfig, LogMelConfig, StudentConfig
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.fidelity import embed_rows
from pipeline.deploy.parity import centred_cosine
from pipeline.quantisation import start
from pipeline.quantisation.graph import QuantisedGraph
from pipeline.students.checker import measure_statistics
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import load_student, read_description, save_student
from tests.deploy.raw_clips import MEAN, MELS, STD, RawClips


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, CalibrationRows]:
    """Folder of the start, folder of the run, and rows, of a narrow MicroNet."""
    folder = tmp_path_factory.mktemp("deploy_start")
    config = StudentConfig(name="micronet_m0", width=0.5)
    torch.manual_seed(0)
    student = NormalisedStudent(build_student(config, MELS), mean=MEAN, std=STD)
    clips = RawClips(MELS)
    measure_statistics(student, clips)
    run = folder / "run"
    run.mkdir()
    save_student(run, student, config, LogMelConfig(mels=MELS), None)
    rows = CalibrationRows(clips(24, 64).numpy(), clips(24, 64).numpy(), "validation")
    start.graph(folder, run, load_student(run).eval(), read_description(run), rows, ExportConfig())
    return folder, run, rows


@pytest.mark.exhaustive
def test_a_micronet_is_trained_in_its_deploy_form(begun: tuple[Path, Path, CalibrationRows]) -> None:
    """All of its weights, the zeros that the form adds too, and in a graph that rounds as the file does."""
    folder, run, rows = begun
    description, student = read_description(run), load_student(run).eval()
    model, floats = start.graph(folder, run, student, description, rows, ExportConfig())
    graph = QuantisedGraph(model, floats).eval()
    form = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(folder / start.DEPLOY)).graph.initializer}
    zeros = sum(int((form[name.removesuffix("_quantized")] == 0).sum()) for name in form if ".weight" in name)
    assert zeros > 100
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(graph.weight_of) >= len(convolutions) > 5
    with torch.no_grad():
        got = graph(torch.from_numpy(rows.held_out)).numpy()
    assert centred_cosine(got, embed_rows(folder / start.INT8, rows.held_out)) > 0.999
    with torch.no_grad():
        want = student(torch.from_numpy(rows.held_out)).numpy()
    np.testing.assert_allclose(
        embed_rows(folder / start.DEPLOY, rows.held_out), want, atol=1e-4 * np.abs(want).max()
    )
