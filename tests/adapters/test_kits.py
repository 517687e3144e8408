"""HEAR's and X-ARES's interfaces: their contracts, and the embeddings against windows cut by hand."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soxr
import torch

from pipeline.adapters import hear, xares
from pipeline.adapters.student_windows import open_student
from pipeline.config import LogMelConfig, StudentConfig, canonical_json
from pipeline.errors import ConfigError, MissingArtifactError
from pipeline.frontends.log_mel import LogMel
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import load_student, save_student
from tests.adapters.contracts import check_hear, check_xares, noise
from tests.evaluation.onnx_students import onnx_file

STUDENT = StudentConfig(width=0.25)
FRONTENDS = {
    16_000: LogMelConfig(mels=16),
    32_000: LogMelConfig(mels=16, sample_rate_hz=32_000, n_fft=1_024, window_length=1_024),
}


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of 16 kHz, one of 32 kHz, and an ONNX file."""
    folder = tmp_path_factory.mktemp("students")
    for rate_hz, frontend in FRONTENDS.items():
        torch.manual_seed(1)
        student = NormalisedStudent(build_student(STUDENT, 16), -4.0, 3.0)
        save_student(folder / str(rate_hz), student.eval(), STUDENT, frontend)
    properties = {"ossicle.frontend": canonical_json(FRONTENDS[16_000])}
    return {
        "run": folder / "16000", "higher": folder / "32000",
        "onnx": onnx_file(folder / "student.onnx", properties),
    }  # fmt: skip


@pytest.mark.parametrize("which", ["run", "higher", "onnx"])
def test_hears_contract(which: str, students: dict[str, Path]) -> None:
    check_hear(hear, str(students[which]))


@pytest.mark.parametrize("which", ["run", "higher", "onnx"])
def test_xares_contract(which: str, students: dict[str, Path]) -> None:
    check_xares(xares.StudentEncoder(students[which]))


def test_xares_finds_one_encoder_in_the_module_and_makes_it_without_arguments(
    students: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["StudentEncoder"]
    monkeypatch.setenv("OSSICLE_STUDENT", str(students["run"]))
    assert xares.StudentEncoder().sampling_rate == hear.load_model().sample_rate == 16_000


def test_hears_own_validator(students: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("hearvalidator") is None:
        pytest.skip("hearvalidator is not installed (pip install --no-deps hearvalidator)")
    if importlib.util.find_spec("tensorflow") is None:
        # It asks of TensorFlow only whether the model is one of its modules.
        tensorflow = ModuleType("tensorflow")
        tensorflow.Module = type("Module", (), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    validate = importlib.import_module("hearvalidator.validate")
    for which in students.values():
        validate.ValidateModel("pipeline.adapters.hear", str(which), device="cpu")()


def test_xares_own_checker(students: dict[str, Path]) -> None:
    checker = pytest.importorskip("xares.audio_encoder_checker", reason="xares is not installed")
    for which in students.values():
        assert checker.check_audio_encoder(xares.StudentEncoder(which))


def test_a_timestamp_embedding_is_that_of_the_window_around_it(students: dict[str, Path]) -> None:
    model = hear.load_model(students["run"], window_seconds=0.4, hop_ms=50)
    audio = noise(2, 1.5, 16_000)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert timestamps[1].tolist() == pytest.approx([25 + 50 * k for k in range(30)])
    student, log_mel = load_student(students["run"]), LogMel(FRONTENDS[16_000])
    padded = np.pad(audio.numpy(), ((0, 0), (16_000, 16_000)))
    for k in (0, 12, 29):
        middle = 16_000 + round(timestamps[0, k].item() * 16)
        window = torch.from_numpy(padded[:, middle - 3_200 : middle + 3_200].copy())
        with torch.no_grad():
            expected = student(log_mel(window))
        torch.testing.assert_close(embeddings[:, k], expected, atol=1e-5, rtol=1e-4)


def test_a_scene_embedding_is_the_mean_of_windows(students: dict[str, Path]) -> None:
    model = hear.load_model(students["run"], window_seconds=0.5)
    audio = noise(3, 1.25, 16_000)
    student, log_mel = load_student(students["run"]), LogMel(FRONTENDS[16_000])
    with torch.no_grad():
        parts = [student(log_mel(audio[:, start : start + 8_000])) for start in (0, 6_000, 12_000)]
    torch.testing.assert_close(
        hear.get_scene_embeddings(audio, model), torch.stack(parts).mean(0), atol=1e-5, rtol=1e-4
    )
    short = torch.cat([audio[:, :3_000], torch.zeros(3, 5_000)], dim=1)
    with torch.no_grad():
        expected = student(log_mel(short))
    torch.testing.assert_close(
        hear.get_scene_embeddings(audio[:, :3_000], model), expected, atol=1e-5, rtol=1e-4
    )


def test_a_student_of_another_rate_hears_the_sound_resampled(students: dict[str, Path]) -> None:
    model = hear.load_model(students["higher"], window_seconds=0.5)
    assert model.sample_rate == 44_100
    audio = noise(1, 0.5, 44_100)
    resampled = soxr.resample(audio[0].numpy(), 44_100, 32_000, quality="HQ").astype(np.float32)
    student, log_mel = load_student(students["higher"]), LogMel(FRONTENDS[32_000])
    with torch.no_grad():
        expected = student(log_mel(torch.from_numpy(resampled)[None]))
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), expected, atol=1e-3, rtol=1e-3)
    assert xares.StudentEncoder(students["higher"]).sampling_rate == 32_000


def test_an_onnx_file_gives_the_log_mels_mean(students: dict[str, Path]) -> None:
    audio = noise(2, 1.0, 16_000)
    expected = LogMel(FRONTENDS[16_000])(audio).mean(dim=2)
    model = hear.load_model(students["onnx"])
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), expected, atol=1e-5, rtol=1e-4)


def test_hops_longer_than_a_window(students: dict[str, Path]) -> None:
    model = hear.load_model(students["run"], window_seconds=0.1, hop_ms=400)
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(1, 1.3, 16_000), model)
    assert embeddings.shape[1] == 3 and timestamps[0].tolist() == pytest.approx([200, 600, 1_000])


def test_what_cannot_be_opened_is_refused(
    students: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OSSICLE_STUDENT", raising=False)
    with pytest.raises(ConfigError, match="no student is named"):
        hear.load_model()
    with pytest.raises(MissingArtifactError):
        hear.load_model(tmp_path)
    with pytest.raises(ConfigError, match="longer than nothing"):
        xares.StudentEncoder(students["run"], hop_ms=0)
    with pytest.raises(ConfigError, match="not one frame"):
        open_student(students["run"], window_seconds=0.01)
    with pytest.raises(ConfigError, match="higher rate"):
        open_student(students["run"], accepted_rates_hz=(8_000,))
