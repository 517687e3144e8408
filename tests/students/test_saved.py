"""Saving and loading a student, and every way a saved one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.errors import ConfigError, MissingArtifactError, WeightsError
from pipeline.students import build_student, students
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.saved import TeacherCredit, load_student, read_description, save_student

CREDIT = TeacherCredit(name="some_teacher", licence="CC-BY-4.0", citation="Someone, 2024")


def trained(config: StudentConfig, mels: int) -> NormalisedStudent:
    """Return a student whose weights and running statistics are not those of its initialisation."""
    torch.manual_seed(3)
    student = NormalisedStudent(build_student(config, mels), mean=-6.5, std=4.25)
    student.train()
    with torch.no_grad():
        student(torch.randn(4, mels, 33))
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return student.to(memory_format=torch.channels_last).eval()


@pytest.mark.parametrize("name", students.names())
def test_a_saved_student_comes_back_bit_equal(name: str, tmp_path: Path) -> None:
    config = StudentConfig(name=name, width=0.35, embedding_dim=24, odd_size="resize")
    frontend = LogMelConfig(mels=40, hop_length=160)
    student = trained(config, 40)
    saved = save_student(tmp_path / "run", student, config, frontend, CREDIT)
    torch.manual_seed(99)
    loaded = load_student(tmp_path / "run")
    x = torch.randn(2, 40, 51)
    with torch.no_grad():
        assert torch.equal(loaded(x), student.to(memory_format=torch.contiguous_format)(x))
    assert not loaded.training
    want, got = student.state_dict(), loaded.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) for k in want)
    assert read_description(tmp_path / "run") == saved
    assert saved.student == config
    assert saved.frontend == frontend
    assert saved.embedding_dim == loaded.embedding_dim == 24
    assert saved.teacher == CREDIT


def test_the_description_is_plain_json_with_every_frontend_constant(tmp_path: Path) -> None:
    config, frontend = StudentConfig(width=0.25), LogMelConfig()
    save_student(tmp_path, trained(config, 64), config, frontend)
    record = json.loads((tmp_path / "student.json").read_text())
    assert record["frontend"] == frontend.model_dump(mode="json")
    assert record["student"] == config.model_dump(mode="json")
    assert (record["mean"], record["std"], record["mels"]) == (-6.5, 4.25, 64)
    assert record["teacher"] is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = StudentConfig(width=0.25)
    save_student(tmp_path, trained(config, 64), config, LogMelConfig())
    return tmp_path


@pytest.mark.parametrize("file", ["student.json", "student.safetensors"])
def test_a_missing_file_names_the_stage_that_makes_it(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(MissingArtifactError, match="ossicle distill"):
        load_student(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"student": 1}', b"\xff\xfe"])
def test_a_damaged_description_is_a_weights_error(folder: Path, content: bytes) -> None:
    (folder / "student.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"student\.json"):
        load_student(folder)


def test_changed_weights_are_noticed(folder: Path) -> None:
    path = folder / "student.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256"):
        load_student(folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    import hashlib

    path = folder / "student.safetensors"
    state = load_file(path)
    state.pop("backbone.features.0.weight")
    save_file(state, path)
    record = json.loads((folder / "student.json").read_text())
    record["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "student.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match=r"features\.0\.weight"):
        load_student(folder)


def test_a_description_with_an_unknown_key_is_refused(folder: Path) -> None:
    record = json.loads((folder / "student.json").read_text())
    (folder / "student.json").write_text(json.dumps({**record, "surprise": 1}))
    with pytest.raises(WeightsError):
        load_student(folder)


def test_normalisation_is_subtract_mean_divide_by_std() -> None:
    torch.manual_seed(0)
    backbone = build_student(StudentConfig(width=0.25), 64).eval()
    student = NormalisedStudent(backbone, mean=-3.0, std=2.0).eval()
    x = 2.0 * torch.randn(2, 64, 30) - 3.0
    with torch.no_grad():
        torch.testing.assert_close(student(x), backbone(((x + 3.0) / 2.0)[:, None]))
        assert torch.equal(student(x), student(x[:, None]))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_impossible_statistics_are_refused(mean: float, std: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        NormalisedStudent(build_student(StudentConfig(width=0.25), 64), mean, std)
