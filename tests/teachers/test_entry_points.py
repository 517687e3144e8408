"""A teacher of another distribution: its entry point alone makes it known."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, UnknownNameError, WeightsError
from pipeline.teachers.base import Teacher
from pipeline.teachers.checker import check
from pipeline.teachers.registry import build_teacher, teachers
from tests import foreign_distribution
from tests.teachers.checkpoint_table import saved

CODE = """
import torch
from torch import nn

class Bands(nn.Module):
    sample_rate_hz, window_samples = 8_000, 1_024
    licence, citation = "MIT", "A. Somebody, 2026"

    def __init__(self, width: int = 4):
        super().__init__()
        self.linear = nn.Linear(65, width)
        nn.init.constant_(self.linear.bias, 0.5)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, waveforms):
        padded = nn.functional.pad(waveforms, (0, max(0, 128 - waveforms.shape[1])))
        power = torch.fft.rfft(padded.unfold(1, 128, 64)).abs().float()
        frames = self.linear(torch.log(power + 1e-3))
        return {"embedding": frames.mean(1), "frames": frames}

class Unlicensed(Bands):
    licence = None

class Flat(Bands):
    def forward(self, waveforms):
        return super().forward(waveforms)["embedding"].sum(1)

def build(config, *, weights=None, cache=None):
    return Bands(width=config.options["width"])

def build_wrong(config, *, weights=None, cache=None):
    return "no teacher"

NUMBER = 3
"""
NAMES = {"bands": "Bands", "built": "build", "unlicensed": "Unlicensed", "flat": "Flat", "wrong": "build_wrong",
         "number": "NUMBER", "absent": "Nothing", "tiny": "Bands"}  # fmt: skip


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with foreign_distribution.installed(tmp_path / "site", monkeypatch, "teachers", CODE, NAMES):
        yield


def test_a_module_becomes_a_teacher() -> None:
    assert {"bands", "built"} <= set(teachers.names())
    teacher = build_teacher(TeacherConfig(name="bands", dtype="float32"))
    assert isinstance(teacher, Teacher)
    assert (teacher.name, teacher.licence, teacher.embedding_dim) == ("bands", "MIT", 4)
    assert teacher.outputs == ("embedding", "frames")
    assert [finding.problem for finding in check(teacher) if not finding.kept] == []
    waveforms = torch.randn(2, 1_024, generator=torch.Generator().manual_seed(0))
    module = sys.modules["somebodys_teachers"].Bands()
    with torch.inference_mode():
        want = module(waveforms)["embedding"]
    torch.testing.assert_close(teacher.embed(waveforms)["embedding"], want)


def test_options_reach_module_and_builder() -> None:
    wide = {"width": 6}
    for name in ("bands", "built"):
        assert build_teacher(TeacherConfig(name=name, options=wide)).embedding_dim == 6
    digests = {build_teacher(TeacherConfig(name="bands", options=o)).digest() for o in ({}, wide)}
    assert len(digests) == 2
    with pytest.raises(ConfigError, match="options do not fit"):
        build_teacher(TeacherConfig(name="bands", options={"depth": 2}))


def test_its_weights_are_a_trusted_file(tmp_path: Path) -> None:
    content = saved({"linear.weight": torch.ones(4, 65), "linear.bias": torch.zeros(4)})
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(WeightsError, match="not trusted"):
        build_teacher(TeacherConfig(name="bands", weights=path))
    teacher = build_teacher(TeacherConfig(name="bands", weights=path, trust_sha256=digest))
    assert teacher.digest() != build_teacher(TeacherConfig(name="bands")).digest()
    embedding = teacher.embed(torch.zeros(1, 1_024))["embedding"]
    assert torch.equal(embedding, embedding[:, :1].expand(1, 4))
    with pytest.raises(WeightsError, match="does not fit"):
        build_teacher(TeacherConfig(name="bands", weights=path, trust_sha256=digest, options={"width": 5}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unlicensed", "lacks licence"),
        ("flat", "gives no embedding"),
        ("wrong", "lacks part of the contract"),
        ("number", "is no builder"),
        ("absent", "cannot be imported"),
    ],
)
def test_what_is_wrong_with_one_is_said(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_teacher(TeacherConfig(name=name))


def test_names_of_ours_stay_ours() -> None:
    from pipeline.teachers.synthetic import TinyTeacher

    assert isinstance(build_teacher(TeacherConfig(name="tiny")), TinyTeacher)
    with pytest.raises(UnknownNameError, match="bands"):
        build_teacher(TeacherConfig(name="bandz"))
