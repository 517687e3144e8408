"""A causal student's exported step in ONNX Runtime against torch on the whole signal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.onnx_export import export_student
from pipeline.deploy.onnx_stream import OnnxStream
from pipeline.deploy.stream_export import check_stream, export_stream
from pipeline.errors import ConfigError, ParityError
from pipeline.students import build_student
from pipeline.students.normalised import NormalisedStudent
from tests.deploy import tiny

# Carried convolutions and pools, response norm, running maximum, memory, squeeze-excitation, deviation, shift-max,
# and steps that a 1x1 convolution skips. Each export is half a minute: by default one, of the fixture below.
CASES = [
    ("cp_mobile_6k", None),
    ("cnn4", 40),
    pytest.param("eres2net", 50, marks=pytest.mark.exhaustive),
    pytest.param("micronet_m0", None, marks=pytest.mark.exhaustive),
    pytest.param("mn04", 70, marks=pytest.mark.exhaustive),
    ("mobile_fcn", None),
]


def causal(name: str, memory_frames: int | None = None) -> NormalisedStudent:
    torch.manual_seed(0)
    config = StudentConfig(name=name, width=0.1, causal=True, memory_frames=memory_frames)
    student = NormalisedStudent(build_student(config, tiny.MELS), tiny.MEAN, tiny.STD).train()
    with torch.no_grad():
        student(torch.from_numpy(tiny.noise_rows()))
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student.eval()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "memory_frames"), CASES)
def test_every_kind_of_step_follows_the_whole_signal(
    name: str, memory_frames: int | None, tmp_path: Path
) -> None:
    student, path = causal(name, memory_frames), tmp_path / "stream.onnx"
    export_stream(student, path, metadata=tiny.metadata())
    assert_follows(student, path)


def assert_follows(student: NormalisedStudent, path: Path) -> None:
    stream = OnnxStream(path, batch=3)
    assert student.backbone.causal is not None
    step = student.backbone.causal.step_frames
    assert stream.step_frames == step
    rows = np.concatenate([tiny.log_mels(3, seed=s) for s in range(-(-3 * step // tiny.FRAMES) + 1)], axis=2)
    signal = rows[..., : 3 * step + 1]
    got = [e for portion in np.array_split(signal, 4, axis=2) for e in stream.push(portion)]
    with torch.no_grad():
        want = [student(torch.from_numpy(signal[..., : i * step])).numpy() for i in (1, 2, 3)]
        end = student(torch.from_numpy(signal)).numpy()
    scale = float(np.abs(end).max())
    np.testing.assert_allclose(np.stack(got), np.stack(want), atol=1e-5 * scale, rtol=0)
    np.testing.assert_allclose(stream.finish(), end, atol=1e-5 * scale, rtol=0)
    assert np.abs(want[2] - want[1]).max() > 1e-4 * scale
    # One that has ended starts anew, of another batch as well.
    again = OnnxStream(path).push(signal[:1, :, :step])
    np.testing.assert_allclose(again[0], want[0][:1], atol=1e-5 * scale, rtol=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[NormalisedStudent, Path]:
    student, path = causal("cp_resnet"), tmp_path_factory.mktemp("stream") / "stream.onnx"
    export_stream(student, path, metadata=tiny.metadata())
    return student, path


def test_the_exported_step_follows_the_whole_signal(exported: tuple[NormalisedStudent, Path]) -> None:
    assert_follows(*exported)


def test_the_file_says_what_a_device_needs(exported: tuple[NormalisedStudent, Path]) -> None:
    student, path = exported
    found = metadata_props.read(path)
    assert found["student"] == "tiny" and found["normalisation"] == {"mean": tiny.MEAN, "std": tiny.STD}
    session = OnnxStream(path).session
    names = {given.name: list(given.shape) for given in session.get_inputs()}
    outputs = {given.name: list(given.shape) for given in session.get_outputs()}
    assert student.backbone.causal is not None
    assert names.pop("log_mel") == ["batch", 1, tiny.MELS, student.backbone.causal.step_frames]
    assert outputs.pop("embedding") == ["batch", student.embedding_dim]
    assert outputs == {f"{name}.next": shape for name, shape in names.items()}
    # What is carried is the past of each layer and no more: the network's parameters bound it.
    assert all("past" in name or name.endswith((".mean", ".count")) for name in names)


def test_parity_notices_another_networks_step(exported: tuple[NormalisedStudent, Path]) -> None:
    student, path = exported
    inputs = [tiny.log_mels(2)[:, None], tiny.log_mels(1, seed=1)[:, None, :, :7]]
    assert check_stream(student, path, inputs, tolerance=1e-5).worst <= 1e-5
    other = causal("cp_resnet")
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    with pytest.raises(ParityError, match="whole signal"):
        check_stream(other, path, inputs, tolerance=1e-4)


def test_wrong_use_is_one_clear_error(exported: tuple[NormalisedStudent, Path], tmp_path: Path) -> None:
    stream = OnnxStream(exported[1])
    with pytest.raises(ConfigError, match="another stream"):
        stream.push(np.zeros((2, tiny.MELS, 4), np.float32))
    with pytest.raises(ConfigError, match="before its first frame"):
        stream.finish()
    plain = NormalisedStudent(
        build_student(StudentConfig(name="cp_mobile_6k", width=0.5), tiny.MELS), 0.0, 1.0
    )
    with pytest.raises(ConfigError, match="cannot listen to a stream"):
        export_stream(plain, tmp_path / "no.onnx", metadata=tiny.metadata())
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["cp_mobile_6k", "micronet_m0"])
def test_a_whole_clip_through_a_causal_student_exports_at_any_length(name: str, tmp_path: Path) -> None:
    from pipeline.deploy.parity import check_parity, log_mel_inputs

    student = causal(name, 60)
    metadata = replace(tiny.metadata(), frontend=LogMelConfig(mels=tiny.MELS))
    export_student(student, tmp_path / "whole.onnx", metadata=metadata)
    inputs = log_mel_inputs(tiny.noise_rows())
    assert check_parity(student, tmp_path / "whole.onnx", inputs, tolerance=1e-4).worst <= 1e-4
