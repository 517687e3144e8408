"""Every family through the dynamo exporter: ONNX Runtime agrees at lengths and batches not used at export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import StudentConfig
from pipeline.students import build_student
from pipeline.students.checker import Clips, measure_statistics
from pipeline.students.dymn import DyMN
from pipeline.students.mobilenetv3 import ROWS
from pipeline.students.mobilevitv2 import MobileVitBlock
from pipeline.students.normalised import NormalisedStudent
from tests.students.names import EXHAUSTIVE

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CASES = [
    ("cnn4", 0.5, None),
    pytest.param(*("micronet_m0", 0.5, 20), marks=EXHAUSTIVE),
    pytest.param(*("mobilevitv2_050", 0.25, None), marks=EXHAUSTIVE),
    pytest.param(*("cp_resnet", 1.0, None), marks=EXHAUSTIVE),
    pytest.param(*("mn04", 0.2, None), marks=EXHAUSTIVE),
    pytest.param(*("mobilevit_xxs", 0.1, 20), marks=EXHAUSTIVE),
    pytest.param(*("cp_mobile_6k", 1.0, 24), marks=EXHAUSTIVE),
    pytest.param(*("dcase24_baseline", 0.5, None), marks=EXHAUSTIVE),
    pytest.param(*("eres2net", 0.1, None), marks=EXHAUSTIVE),
    pytest.param(*("mobile_fcn", 0.5, 24), marks=EXHAUSTIVE),
    pytest.param(*("harmonic_cnn", 0.1, None), marks=EXHAUSTIVE),
    pytest.param(*("shortchunk_cnn_res", 0.1, 20), marks=EXHAUSTIVE),
    ("wav2small", 0.5, None),
    ("wav2small_17k", 0.5, None),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "width", "embedding_dim"), CASES)
def test_onnx_runtime_agrees_at_other_lengths_and_batches(
    name: str, width: float, embedding_dim: int | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = StudentConfig(name=name, width=width, embedding_dim=embedding_dim)
    student = NormalisedStudent(build_student(config, 64), mean=-6.0, std=4.0).train()
    with torch.no_grad():
        # Running statistics away from 0 and 1, else a wrong batch norm would not show.
        student(4 * torch.randn(4, 1, 64, 90) - 6)
    student.eval()
    session = export(student, (2, 1, 64, 115), tmp_path / "student.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 64, "time"]
    for batch, frames in [(1, 5), (1, 96), (3, 100), (2, 128), (1, 333), (5, 61)]:
        assert_equal(session, student, 4 * torch.randn(batch, 1, 64, frames) - 6)


@EXHAUSTIVE
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dymn_s_kernels_follow_any_batch(tmp_path: Path) -> None:
    # The first five of fifteen blocks have every kind of part: all of them take the exporter a minute.
    torch.manual_seed(0)
    student = NormalisedStudent(DyMN(width=0.1, rows=ROWS[:5], temperature=2.0), mean=-6.0, std=4.0)
    measure_statistics(student, Clips(32))
    session = export(student, (2, 1, 32, 45), tmp_path / "dymn.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 32, "time"]
    for batch, frames in [(1, 1), (1, 45), (3, 60), (5, 131)]:
        assert_equal(session, student, 4 * torch.randn(batch, 1, 32, frames) - 6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_resizing_mobilevit_block_agrees_at_odd_and_even_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    block = MobileVitBlock(16, 1, "resize").eval()
    session = export(block, (2, 16, 5, 14), tmp_path / "block.onnx")
    for batch, frames in [(1, 1), (1, 14), (3, 15), (2, 31)]:
        assert_equal(session, block, torch.randn(batch, 16, 5, frames))


def export(model: nn.Module, shape: tuple[int, ...], path: Path) -> Any:
    """Export ``model`` with dynamic batch and time and return a session on the file."""
    torch.onnx.export(
        model,
        (torch.randn(shape),),
        path,
        dynamo=True,
        dynamic_shapes=({0: "batch", 3: "time"},),
        input_names=["input"],
        output_names=["output"],
        external_data=False,
        verbose=False,
    )
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def assert_equal(session: Any, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        want = model(x)
    got = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5 * float(want.abs().max()))
