"""PANNs, MULE and Resemblyzer: the layouts of their files, and what else is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.artifact import file_digest
from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.frontends.mule_frontend import MuleFrontend
from pipeline.frontends.panns_frontend import AT_16_KHZ, AT_32_KHZ, PannsFrontend
from pipeline.teachers import panns
from pipeline.teachers.base import Teacher
from pipeline.teachers.folding import without_constants
from pipeline.teachers.registry import build_teacher
from pipeline.teachers.resemblyzer import ResemblyzerTeacher, VoiceEncoder


def load(name: str, payload: Any, folder: Path, **keys: Any) -> Teacher:
    file = folder / ("weights.safetensors" if name == "mule" else "weights.pt")
    if name == "mule":
        save_file(payload, file)
    else:
        torch.save(payload, file)
    config = TeacherConfig(name=name, weights=file, trust_sha256=file_digest(file), **keys)
    return build_teacher(config, cache=folder / "cache")


def voice_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return VoiceEncoder().state_dict()


def test_resemblyzer_drops_the_losss_parameters(tmp_path: Path) -> None:
    extra = {"similarity_weight": torch.ones(1), "similarity_bias": torch.zeros(1)}
    payload = {"step": 1, "model_state": voice_state() | extra, "optimizer_state": {}}
    teacher = load("resemblyzer", payload, tmp_path)
    assert isinstance(teacher, ResemblyzerTeacher)
    assert teacher.dtype is torch.float32
    clips = 0.1 * torch.randn(3, 40_000, generator=torch.Generator().manual_seed(1))
    made = teacher.embed(clips, ("embedding", "frames"))
    assert made["frames"].shape == (3, 2, 256)
    assert made["embedding"].norm(dim=1).tolist() == pytest.approx([1.0] * 3)
    assert made["embedding"].min() >= 0.0
    alone = torch.cat([teacher.embed(clip[None])["embedding"] for clip in clips])
    torch.testing.assert_close(made["embedding"], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("payload", [voice_state(), {"model": {}}, {"model_state": {"x": torch.ones(1)}}])
def test_resemblyzer_refuses_other_files(payload: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        load("resemblyzer", payload, tmp_path)


def test_resemblyzer_has_one_number_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float32"):
        load("resemblyzer", {"model_state": voice_state()}, tmp_path, dtype="bfloat16")


@pytest.mark.parametrize("payload", [{"x": torch.ones(1)}, [torch.ones(1)], {"model": {"x": torch.ones(1)}}])
def test_panns_refuses_other_files(payload: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        load("panns_cnn14", payload, tmp_path)


def test_panns_refuses_the_other_sample_rates_constants() -> None:
    low, high = (PannsFrontend(config).published_constants() for config in (AT_16_KHZ, AT_32_KHZ))
    assert without_constants(low | {"x": torch.ones(1)}, low, panns.CONSTANTS_TOLERANCE, "a") == {
        "x": torch.ones(1)
    }
    with pytest.raises(WeightsError, match="conv_real"):
        without_constants(high, low, panns.CONSTANTS_TOLERANCE, "panns_cnn14_16k")
    shifted = high | {"logmel_extractor.melW": high["logmel_extractor.melW"].roll(1, dims=0)}
    with pytest.raises(WeightsError, match="melW"):
        without_constants(shifted, high, panns.CONSTANTS_TOLERANCE, "panns_cnn14")


def test_mule_refuses_other_files(tmp_path: Path) -> None:
    for payload in (
        {"slow_stem.convs.0.weight": torch.ones(1)},
        {"backbone.slow_stem.convs.0.weight": torch.ones(1)},
        {"frontend.mel_fb": MuleFrontend().published_constants()["frontend.mel_fb"].contiguous() * 2},
    ):
        with pytest.raises(WeightsError):
            load("mule", payload, tmp_path)
