"""The student checker: sound students pass whole, each planted fault is said in words; students by entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.contract import Finding
from pipeline.errors import ConfigError, UnknownNameError
from pipeline.students import build_student, students
from pipeline.students.base import Student
from pipeline.students.checker import check, frontend_of
from tests import foreign_distribution

FRONTEND = LogMelConfig(mels=16)


class Sound(Student):
    """A small student that keeps the whole contract."""

    def __init__(self, width: int = 6, embedding_dim: int | None = None) -> None:
        super().__init__(width, embedding_dim)
        self.conv = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, log_mel: Tensor) -> Tensor:
        embedding: Tensor = self.embedding(self.norm(self.conv(log_mel)).relu().mean(dim=(2, 3)))
        return embedding.float()


def findings(monkeypatch: pytest.MonkeyPatch, network: Callable[..., Student]) -> dict[str, Finding]:
    def build(config: StudentConfig, mels: int) -> Student:
        return network(embedding_dim=config.embedding_dim)

    monkeypatch.setitem(students._builders, "planted", build)
    return {finding.part: finding for finding in check(StudentConfig(name="planted"), FRONTEND)}


def test_a_sound_student_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, Sound)
    assert [f.problem for f in found.values() if not f.kept] == []
    assert len(found) == 13


def spoilt(change: Callable[[Sound, Tensor], Tensor]) -> type[Sound]:
    class Spoilt(Sound):
        def forward(self, log_mel: Tensor) -> Tensor:
            return change(self, log_mel)

    return Spoilt


class Wide(Sound):
    def __init__(self, embedding_dim: int | None = None) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim or 6


class Unused(Sound):
    def __init__(self, embedding_dim: int | None = None) -> None:
        super().__init__(embedding_dim=embedding_dim)
        self.spare = nn.Linear(3, 3)


class Unseeded(Sound):
    def __init__(self, embedding_dim: int | None = None) -> None:
        super().__init__(embedding_dim=embedding_dim)
        with torch.no_grad():
            self.conv.weight.copy_(
                torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(torch.seed()))
            )


class Unsaved(Sound):
    def __init__(self, embedding_dim: int | None = None) -> None:
        super().__init__(embedding_dim=embedding_dim)
        self.scale = torch.randn(1)

    def forward(self, log_mel: Tensor) -> Tensor:
        return super().forward(log_mel) * self.scale


def clip_sees_batch(network: Sound, x: Tensor) -> Tensor:
    return Sound.forward(network, x - x.mean())


def writes_input(network: Sound, x: Tensor) -> Tensor:
    return Sound.forward(network, x.mul_(0.5))


def draws(network: Sound, x: Tensor) -> Tensor:
    return Sound.forward(network, x + 1e-6 * torch.randn_like(x))


def fixed_length(network: Sound, x: Tensor) -> Tensor:
    return Sound.forward(network, x[..., :60].reshape(len(x), 1, 16, 60))


def deaf(network: Sound, x: Tensor) -> Tensor:
    return Sound.forward(network, x * 0.0 + network.conv.weight.sum())


def overflows(network: Sound, x: Tensor) -> Tensor:
    return Sound.forward(network, x) * (x.mean() * 20.0).exp().clamp(min=1.0) ** 4


FAULTS: list[tuple[type[Sound], str, str]] = [
    (spoilt(lambda n, x: Sound.forward(n, x).half()), "a batch, in training and in evaluation", "float16"),
    (spoilt(lambda n, x: Sound.forward(n, x)[:, None]), "a batch, in training and in evaluation", "shape"),
    (spoilt(lambda n, x: [Sound.forward(n, x)]), "a batch, in training and in evaluation", "a list"),  # type: ignore[arg-type, return-value]
    (spoilt(fixed_length), "any length", "1 frames"),
    (spoilt(overflows), "silence, extremes", "very loud"),
    (spoilt(deaf), "different sounds", "does not hear"),
    (spoilt(draws), "the same twice", "other embeddings"),
    (spoilt(draws), "its input and torch's settings left alone", "global generator"),
    (spoilt(clip_sees_batch), "clips apart from their batch", "a clip alone differs"),
    (spoilt(writes_input), "its input and torch's settings left alone", "writes into the log-mels"),
    (spoilt(lambda n, x: Sound.forward(n, x).detach()), "gradients everywhere", "does not require grad"),
    (Unused, "gradients everywhere", "spare.weight, spare.bias get no gradient"),
    (Unseeded, "the same weights from the same seed", "two networks from one seed"),
    (Wide, "an embedding of another width", "37"),
    (Unsaved, "saving and loading", "part of it is not saved"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "part", "words"), FAULTS, ids=[f"{p} - {w}" for _, p, w in FAULTS])
def test_each_fault_is_said_under_its_part(
    network: type[Sound], part: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = findings(monkeypatch, network)
    assert words in found[part].problem


@pytest.mark.parametrize(("name", "width"), [("mn10", 0.05), ("dymn10", 0.05), ("mobilevit_xxs", 0.1)])
def test_the_families_added_here_keep_the_contract(name: str, width: float) -> None:
    config = StudentConfig(name=name, width=width)
    found = check(config, LogMelConfig(mels=32))
    assert [f"{f.part}: {f.problem}" for f in found if not f.kept] == []


def test_a_student_with_filters_of_its_own_gets_its_frontend() -> None:
    assert frontend_of(StudentConfig(name="harmonic_cnn")).bands == "linear"
    assert frontend_of(StudentConfig(name="mn10")) == LogMelConfig()


CODE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, mels, channels=5):
        super().__init__()
        self.conv = nn.Conv1d(mels, channels, 3, padding=1)

    def forward(self, log_mel):
        return self.conv(log_mel[:, 0]).relu().mean(-1)

class Flat(Mine):
    def forward(self, log_mel):
        return super().forward(log_mel).sum(1)

def build(config, mels):
    return Mine(mels, channels=7)

NUMBER = 3
"""
NAMES = {
    "mine": "Mine",
    "flat": "Flat",
    "built": "build",
    "number": "NUMBER",
    "absent": "Nothing",
    "cnn4": "Mine",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with foreign_distribution.installed(tmp_path / "site", monkeypatch, "students", CODE, NAMES):
        yield


def test_a_module_of_another_distribution_is_a_student(installed: None) -> None:
    assert {"mine", "built"} <= set(students.names())
    student = build_student(StudentConfig(name="mine", options={"channels": 9}, embedding_dim=4), 16)
    assert student.pooled_dim == 9
    assert student(torch.randn(2, 1, 16, 30)).shape == (2, 4)
    assert build_student(StudentConfig(name="built"), 16).embedding_dim == 7
    # A name of ours is never taken.
    assert type(build_student(StudentConfig(name="cnn4"), 16)).__name__ == "Cnn4"
    assert [f.problem for f in check(StudentConfig(name="mine"), FRONTEND) if not f.kept] == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "flat"}, "gives no embedding"),
        ({"name": "number"}, "is no builder"),
        ({"name": "absent"}, "cannot be imported"),
        ({"name": "mine", "options": {"depth": 3}}, "do not fit"),
        ({"name": "built", "options": {"depth": 3}}, "has no option 'depth'"),
    ],
)
def test_a_wrong_entry_point_is_explained(keys: dict[str, Any], words: str, installed: None) -> None:
    with pytest.raises(ConfigError, match=words):
        build_student(StudentConfig(**keys), 16)


def test_without_the_distribution_the_name_is_unknown() -> None:
    with pytest.raises(UnknownNameError):
        build_student(StudentConfig(name="mine"), 16)
