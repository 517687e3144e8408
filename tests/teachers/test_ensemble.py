"""Ensembles: averaged logits, embeddings side by side, other sample rates, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import scipy.signal
import torch
from torch import Tensor, nn

from pipeline import artifact
from pipeline.config import LogMelConfig, StudentConfig, TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.students import build_student
from pipeline.students.classifier import save_classifier
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.saved import save_student
from pipeline.teachers.ensemble import EnsembleTeacher
from pipeline.teachers.registry import build_teacher


class Level:
    """A teacher whose outputs are simple functions of the waveform."""

    outputs: tuple[str, ...] = ("embedding", "logits")
    licence, citation = "CC0-1.0", "none"

    def __init__(self, name: str, rate_hz: int, width: int, factor: float) -> None:
        self.name, self.sample_rate_hz, self.embedding_dim, self.factor = name, rate_hz, width, factor
        self.window_samples = rate_hz
        self.heard: Tensor = torch.zeros(0)

    def digest(self) -> str:
        return f"{self.name}{self.factor}"

    def embed(self, waveforms: Tensor, outputs: Any = ("embedding",)) -> dict[str, Tensor]:
        self.heard = waveforms
        level = self.factor * waveforms.square().mean(dim=1, keepdim=True)
        made = {"embedding": level.expand(-1, self.embedding_dim), "logits": level.expand(-1, 3)}
        return {name: made[name] for name in outputs}


def test_logits_are_the_weighted_mean_and_embeddings_stand_side_by_side() -> None:
    members = [Level("a", 16_000, 2, 1.0), Level("b", 16_000, 4, 5.0)]
    waves = torch.randn(3, 800)
    level = waves.square().mean(dim=1, keepdim=True)
    made = EnsembleTeacher(members, (), [None, None]).embed(waves, ("embedding", "logits"))
    torch.testing.assert_close(made["logits"], 3.0 * level.expand(-1, 3))
    weighted = EnsembleTeacher(members, (3.0, 1.0), [None, None]).embed(waves, ("logits",))
    torch.testing.assert_close(weighted["logits"], 2.0 * level.expand(-1, 3))
    want = torch.cat([level.expand(-1, 2) / 2**0.5, 5 * level.expand(-1, 4) / 2], dim=1)
    torch.testing.assert_close(made["embedding"], want)


def test_members_of_lower_rates_hear_resampled_clips() -> None:
    low, high = Level("low", 16_000, 2, 1.0), Level("high", 48_000, 2, 1.0)
    ensemble = EnsembleTeacher([low, high], (), [None, None])
    assert (ensemble.sample_rate_hz, ensemble.window_samples) == (48_000, 48_000)
    time = torch.arange(48_000) / 48_000
    waves = torch.stack([torch.sin(2 * torch.pi * f * time) for f in (440.0, 3_000.0)])
    ensemble.embed(waves)
    assert torch.equal(high.heard, waves)
    want = torch.from_numpy(scipy.signal.resample_poly(waves.numpy(), 1, 3, axis=1))
    assert low.heard.shape == want.shape
    assert (low.heard - want)[:, 500:-500].abs().max() < 0.01


def test_without_logits_of_every_member_there_are_none() -> None:
    plain = Level("plain", 16_000, 2, 1.0)
    plain.outputs = ("embedding",)
    ensemble = EnsembleTeacher([plain, Level("b", 16_000, 2, 1.0)], (), [None, None])
    assert ensemble.outputs == ("embedding",)
    with pytest.raises(ConfigError, match="plain gives none"):
        ensemble.embed(torch.zeros(1, 100), ("logits",))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0.0, 0.0)])
def test_impossible_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="impossible weights"):
        EnsembleTeacher([Level("a", 16_000, 2, 1.0)] * 2, weights, [None, None])


def run_folder(folder: Path, seed: int, classes: list[str]) -> Path:
    torch.manual_seed(seed)
    config, frontend = StudentConfig(name="cp_mobile_6k"), LogMelConfig()
    student = NormalisedStudent(build_student(config, frontend.mels), -6.0, 4.0).eval()
    save_student(folder, student, config, frontend)
    save_classifier(folder, nn.Linear(student.embedding_dim, len(classes)), classes)
    artifact.finish(folder, kind="run", config={"seed": seed}, inputs={})
    return folder


def test_finished_runs_are_members(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / f"run{seed}", seed, ["cat", "dog"]) for seed in (0, 1)]
    members = [{"name": f"run:{folder}"} for folder in folders]
    config = TeacherConfig(name="ensemble", options={"members": members, "name": "both"}, dtype="float32")
    ensemble = build_teacher(config)
    waves = 0.1 * torch.randn(2, 16_000)
    alone = [build_teacher(TeacherConfig(name=f"run:{f}", dtype="float32")) for f in folders]
    want = sum(one.embed(waves, ("logits",))["logits"] for one in alone) / 2
    torch.testing.assert_close(ensemble.embed(waves, ("logits",))["logits"], want)
    assert ensemble.name == "both"
    assert len(ensemble.digest()) == 64
    (folders[1] / "classes.json").write_text(json.dumps(["dog", "cat"]))
    with pytest.raises(ConfigError, match="other classes"):
        build_teacher(config)


def test_one_member_and_weights_files_are_refused(tmp_path: Path) -> None:
    one = TeacherConfig(name="ensemble", options={"members": [{"name": "tiny"}]})
    with pytest.raises(ConfigError, match="members"):
        build_teacher(one)
    two = TeacherConfig(name="ensemble", options={"members": [{"name": "tiny"}] * 2})
    with pytest.raises(WeightsError, match="no weights of its own"):
        build_teacher(two, weights=tmp_path / "x.pt")
