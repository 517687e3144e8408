"""CP teachers: published layouts through the real loader, window handling, outputs against the plain network."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.artifact import file_digest
from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.teachers.cp import FAMILY, SAMPLE_RATE_HZ, CpTeacher, build_cp_resnet
from pipeline.teachers.registry import build_teacher

NAMES = ("cp_resnet", "cp_mobile_6k", "dcase24_baseline")


def random_state(name: str, classes: int = 10) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = FAMILY[name].network(classes).train()
    with torch.no_grad():
        network(torch.randn(4, 1, 256, 40))
    return {key: value + 0.01 for key, value in network.state_dict().items()}


def load(path: Path, name: str, cache: Path, **fields: Any) -> CpTeacher:
    config = TeacherConfig(name=name, weights=path, trust_sha256=file_digest(path), dtype="float32", **fields)
    teacher = build_teacher(config, cache=cache)
    assert isinstance(teacher, CpTeacher)
    return teacher


def lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the layout of a Lightning checkpoint: prefixes, the mel transform's constants, optimiser, callback."""
    callback = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})
    return {
        "epoch": 149,
        "global_step": 81_900,
        "pytorch-lightning_version": "1.8.3",
        "state_dict": {
            **{f"model.{key}": value for key, value in state.items()},
            "mel.1.spectrogram.window": torch.ones(3_072),
        },
        "callbacks": {callback: {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}],
        "lr_schedulers": [],
        "hparams_name": None,
    }


def write_lightning(path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    content = lightning(state)
    callback = next(iter(content["callbacks"]))
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", callback.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[callback.__module__], "ModelCheckpoint", callback, raising=False)
    torch.save(content, path)
    for name in ("pytorch_lightning.callbacks", callback.__module__):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_lightning_checkpoint_and_a_plain_state_dict_give_the_same_outputs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_state(name)
    write_lightning(tmp_path / "epoch=1.ckpt", state, monkeypatch)
    torch.save(state, tmp_path / "plain.pt")
    first = load(tmp_path / "epoch=1.ckpt", name, tmp_path / "cache")
    second = load(tmp_path / "plain.pt", name, tmp_path / "cache")
    waves = torch.randn(2, SAMPLE_RATE_HZ) * 0.1
    got, plain = first.embed(waves, first.outputs), second.embed(waves, second.outputs)
    assert all(torch.equal(got[key], plain[key]) for key in got)
    assert first.digest() != second.digest()
    network = FAMILY[name].network(10).eval()
    network.load_state_dict(state)
    with torch.no_grad():
        log_mel = FAMILY[name].frontend()(waves)[:, None]
        maps, logits = network.maps(log_mel), network(log_mel)
    torch.testing.assert_close(got["embedding"], maps.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["frames"], maps.mean(dim=2).mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got["logits"], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[first.outputs[-1]], got["embedding"], rtol=1e-4, atol=1e-5)


def test_classes_are_the_checkpoints_own_and_widths_are_announced(tmp_path: Path) -> None:
    torch.save(random_state("cp_mobile_6k", classes=7), tmp_path / "own.pt")
    teacher = load(tmp_path / "own.pt", "cp_mobile_6k", tmp_path)
    made = teacher.embed(torch.randn(1, SAMPLE_RATE_HZ), ("embedding", "logits", "layer.0"))
    assert (made["embedding"].shape, made["logits"].shape) == ((1, teacher.embedding_dim), (1, 7))
    assert made["layer.0"].shape == (1, 8)


@pytest.mark.parametrize("samples", [1, 2_049, 31_999, 80_000])
def test_any_length_is_heard_and_clips_of_a_batch_do_not_see_each_other(samples: int, tmp_path: Path) -> None:
    torch.save(random_state("cp_resnet"), tmp_path / "own.pt")
    teacher = load(tmp_path / "own.pt", "cp_resnet", tmp_path)
    torch.manual_seed(1)
    waves = 0.1 * torch.randn(3, samples)
    made = teacher.embed(waves)["embedding"]
    assert made.shape == (3, 92)
    assert made.isfinite().all()
    torch.testing.assert_close(made[1:2], teacher.embed(waves[1:2])["embedding"], rtol=1e-4, atol=1e-5)
    if samples == 2_049:
        silent = torch.cat([waves, torch.zeros(3, 1)], dim=1)
        torch.testing.assert_close(teacher.embed(silent)["embedding"], made)


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    torch.save(random_state("cp_resnet"), tmp_path / "own.pt")
    exact = load(tmp_path / "own.pt", "cp_resnet", tmp_path)
    config = TeacherConfig(
        name="cp_resnet",
        weights=tmp_path / "own.pt",
        trust_sha256=exact.weights_sha256,
        dtype="bfloat16",
    )
    coarse = build_cp_resnet(config, cache=tmp_path)
    waves = 0.1 * torch.randn(4, SAMPLE_RATE_HZ)
    cosine = torch.cosine_similarity(exact.embed(waves)["embedding"], coarse.embed(waves)["embedding"])
    assert cosine.min() > 0.999
    assert coarse.digest() != exact.digest()


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, {"state_dict": {"model.strange": torch.zeros(2)}}, [torch.zeros(2)]]
)
def test_other_layouts_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError):
        load(tmp_path / "other.pt", "cp_resnet", tmp_path)


def test_another_members_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save(random_state("dcase24_baseline"), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="does not fit cp_mobile_6k"):
        load(tmp_path / "other.pt", "cp_mobile_6k", tmp_path)


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    torch.save(random_state("cp_resnet"), tmp_path / "own.pt")
    with pytest.raises(ConfigError, match="no option 'layer'"):
        load(tmp_path / "own.pt", "cp_resnet", tmp_path, options={"layer": 3})
