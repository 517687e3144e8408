"""The exporter's parts of the student's contract, through the command's stage: a sound student and a broken one."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.students import students
from pipeline.students.base import Student

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from pipeline.deploy import student_contract
from stages import students as stage

FRONTEND = LogMelConfig(mels=16)


class Sound(Student):
    """A small student that keeps the whole contract."""

    def __init__(self, embedding_dim: int | None = None) -> None:
        super().__init__(6, embedding_dim)
        self.conv = nn.Conv2d(1, 6, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, log_mel: Tensor) -> Tensor:
        embedding: Tensor = self.embedding(self.norm(self.conv(log_mel)).relu().mean(dim=(2, 3)))
        return embedding.float()


class FixedLength(Sound):
    """Right in torch at every length, but its exported graph knows one length only."""

    def forward(self, log_mel: Tensor) -> Tensor:
        frames = int(torch.tensor(log_mel.shape[3]).item())
        return super().forward(log_mel * (1.0 / frames) * frames)


def plant(network: type[Sound], monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: StudentConfig, mels: int) -> Student:
        return network(config.embedding_dim)

    monkeypatch.setitem(students._builders, "planted", build)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sound_student_is_said_to_keep_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(Sound, monkeypatch)
    console = Console(record=True, width=200)
    kept = stage.check("planted", ["embed.frontend.mels=16"], console=console)
    text = console.export_text()
    assert kept, text
    assert "ok     ONNX, batch and time dynamic" in text
    assert "ok     int8" in text
    assert "student planted keeps the contract" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_student_that_the_exporter_refuses_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(FixedLength, monkeypatch)
    found = student_contract.check(StudentConfig(name="planted"), FRONTEND)
    assert found[0].part == "ONNX, batch and time dynamic"
    assert found[0].problem
