"""EfficientAT teachers at random weights: windows of any length, outputs, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.artifact import file_digest
from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.students.dymn import DyMN, temperature_at
from pipeline.students.mobilenetv3 import MobileNetV3
from pipeline.teachers.base import Teacher
from pipeline.teachers.efficientat import DYMN04_AS, MN04_AS, EfficientAtConfig, EfficientAtTeacher
from pipeline.teachers.registry import build_teacher
from pipeline.teachers.weights import Weights


def calibrated(network: MobileNetV3 | DyMN) -> MobileNetV3 | DyMN:
    """Give the batch norms the statistics of noise: as first drawn, the network's signal fades on its way."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 1, 64, 40))
    return network.eval()


def drawn_state(network: EfficientAtConfig) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return calibrated(network.network(5)).state_dict()


def teacher_of(network: EfficientAtConfig, **keys: Any) -> EfficientAtTeacher:
    loaded = Weights(drawn_state(network), {}, "0" * 64, "MIT", "nobody")
    return EfficientAtTeacher(network, loaded, TeacherConfig(name=network.name, dtype="float32", **keys))


def sound(batch: int, samples: int) -> Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("network", [MN04_AS, DYMN04_AS])
def test_windows_of_any_length(network: EfficientAtConfig) -> None:
    teacher = teacher_of(network, batch_size=2)
    assert isinstance(teacher, Teacher)
    for samples, frames in ((1, 1), (700, 1), (32_000, 4), (50_001, 5)):
        made = teacher.embed(sound(3, samples), teacher.outputs)
        assert made["embedding"].shape == (3, teacher.embedding_dim)
        assert made["logits"].shape == (3, 5)
        assert made["frames"].shape == (3, frames, teacher.embedding_dim)
        assert made["layer.0"].shape == (3, 8)
        torch.testing.assert_close(made["frames"].mean(dim=1), made["embedding"])
        assert all(value.isfinite().all() for value in made.values())


@pytest.mark.parametrize("network", [MN04_AS, DYMN04_AS])
def test_clips_of_a_batch_do_not_see_each_other(network: EfficientAtConfig) -> None:
    teacher = teacher_of(network)
    clips = sound(3, 20_000)
    together = teacher.embed(clips)["embedding"]
    alone = torch.cat([teacher.embed(clip[None])["embedding"] for clip in clips])
    torch.testing.assert_close(together, alone, atol=3e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-4


@pytest.mark.parametrize("network", [MN04_AS, DYMN04_AS])
def test_the_folded_network_equals_the_students(network: EfficientAtConfig) -> None:
    teacher = teacher_of(network)
    plain = network.network(5)
    plain.load_state_dict(drawn_state(network))
    plain.eval()
    clips = sound(2, 20_000)
    with torch.inference_mode():
        want = plain(teacher.frontend(clips)[:, None])
    torch.testing.assert_close(teacher.embed(clips, ("logits",))["logits"], want, atol=3e-4, rtol=1e-4)


def test_other_files_are_refused(tmp_path: Path) -> None:
    def load(state: Any) -> None:
        file = tmp_path / "weights.pt"
        torch.save(state, file)
        config = TeacherConfig(name="efficientat_mn04_as", weights=file, trust_sha256=file_digest(file))
        build_teacher(config, cache=tmp_path / "cache")

    state = drawn_state(MN04_AS)
    load(state)
    for other in (
        {"model": state},
        {f"model.{name}": value for name, value in state.items()},
        {
            name: value
            for name, value in state.items()
            if name != "features.4.block.2.conc_se_layers.0.fc1.bias"
        },
        state | {"features.0.0.weight": torch.zeros(16, 1, 3, 3)},
        drawn_state(DYMN04_AS),
    ):
        with pytest.raises(WeightsError):
            load(other)


def test_an_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no option 'embedding'"):
        teacher_of(MN04_AS, options={"embedding": "hear"})


def test_students_take_any_input_and_give_the_width_asked() -> None:
    for network in (MobileNetV3(width=0.1, embedding_dim=24), DyMN(width=0.1, embedding_dim=24)):
        network.eval()
        for mels, frames in ((1, 1), (40, 7), (64, 115)):
            with torch.no_grad():
                assert network(torch.randn(2, 1, mels, frames)).shape == (2, 24)


@pytest.mark.parametrize("kind", [MobileNetV3, DyMN])
def test_students_train(kind: type[MobileNetV3] | type[DyMN]) -> None:
    torch.manual_seed(0)
    network = kind(width=0.1, embedding_dim=8)
    x, target = torch.randn(8, 1, 32, 40), torch.randn(8, 8)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = (network(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_dymn_temperature() -> None:
    assert [temperature_at(epoch) for epoch in (0.0, 10.0, 28.0, 200.0)] == [30.0, 20.0, 2.0, 1.0]
    torch.manual_seed(0)
    network = calibrated(DyMN(width=0.1))
    assert isinstance(network, DyMN)
    x = torch.randn(1, 1, 32, 20)
    with torch.no_grad():
        warm = network(x)
        network.set_temperature(0.05)
        assert (network(x) - warm).abs().max() > 1e-4
