"""What holds for every student by name: shapes, lengths, widths, embeddings, training in bfloat16."""

from __future__ import annotations

import functools

import pytest
import torch

from pipeline.config import StudentConfig
from pipeline.errors import ConfigError, UnknownNameError
from pipeline.students import build_student
from pipeline.students.cnn4 import Cnn4
from tests.students.names import every_student

NAMES = every_student()
WIDTHS = (0.1, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)


@functools.cache
def parameters(name: str, width: float) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_student(StudentConfig(name=name, width=width), 64).parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mels", [40, 64, 128])
def test_any_length_and_any_mels_give_one_finite_embedding_a_clip(name: str, mels: int) -> None:
    torch.manual_seed(0)
    student = build_student(StudentConfig(name=name, width=0.5), mels).eval()
    for frames in (1, 7, 61):
        with torch.no_grad():
            embedding = student(torch.randn(2, 1, mels, frames))
        assert embedding.shape == (2, student.embedding_dim)
        assert embedding.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_clips_of_a_batch_do_not_see_each_other(name: str) -> None:
    torch.manual_seed(0)
    student = build_student(StudentConfig(name=name, width=0.5), 64).eval()
    x = torch.randn(3, 1, 64, 45)
    with torch.no_grad():
        together = student(x)
        alone = torch.cat([student(clip[None]) for clip in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [0.1, 0.6, 0.85, 1.3])
def test_every_width_builds_and_runs(name: str, width: float) -> None:
    with torch.device("meta"):
        student = build_student(StudentConfig(name=name, width=width), 64)
        assert student(torch.empty(2, 1, 64, 61)).shape == (2, student.embedding_dim)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_grow_with_width(name: str) -> None:
    sizes = [parameters(name, w) for w in WIDTHS]
    # Of 8 channels a twentieth is none: wav2tiny has widths of whole channels.
    assert sizes == sorted(sizes if name == "wav2tiny" else set(sizes))


# Published small, their family's larger members one name away (the baseline: 61K, below 250K at twice its width).
SMALL = ("cp_mobile_6k", "cp_mobile_12k", "cp_mobile_30k", "dcase24_baseline", "wav2small_17k")
# Between the others, for networks of millions of parameters, which shrink with the square of the width.
MORE_WIDTHS = (0.07, 0.12, 0.15, 0.4, 0.6)


@pytest.mark.parametrize("name", every_student(but=SMALL))
def test_a_student_of_50k_to_500k_parameters_is_one_setting_away(name: str) -> None:
    sizes = [parameters(name, w) for w in (*WIDTHS, *MORE_WIDTHS)]
    for least, most in ((50_000, 120_000), (120_000, 250_000), (250_000, 500_000)):
        assert any(least <= size <= most for size in sizes), (sizes, least, most)


@pytest.mark.parametrize("name", NAMES)
def test_embedding_dim_adds_one_linear_layer_where_it_differs(name: str) -> None:
    own = build_student(StudentConfig(name=name, width=0.5), 64)
    same = build_student(StudentConfig(name=name, width=0.5, embedding_dim=own.embedding_dim), 64)
    assert same.state_dict().keys() == own.state_dict().keys()
    other = build_student(StudentConfig(name=name, width=0.5, embedding_dim=37), 64).eval()
    assert other.embedding_dim == 37
    assert other(torch.randn(2, 1, 64, 20)).shape == (2, 37)
    assert other.state_dict().keys() - own.state_dict().keys() == {"embedding.weight", "embedding.bias"}


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_channels_last_training_lowers_a_loss(name: str) -> None:
    torch.manual_seed(0)
    student = build_student(StudentConfig(name=name, width=0.35, embedding_dim=8), 32)
    student = student.to(memory_format=torch.channels_last).train()
    x = torch.randn(8, 1, 32, 40).contiguous(memory_format=torch.channels_last)
    target = torch.randn(8, 8)
    optimiser = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embedding = student(x)
        assert embedding.dtype == torch.float32
        loss = (embedding - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        gradients = [p.grad for p in student.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(build_student(StudentConfig(name=name, width=0.35), 64).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_an_unknown_name_lists_near_matches() -> None:
    with pytest.raises(UnknownNameError, match="micronet_m1"):
        build_student(StudentConfig(name="micronet_1"), 64)


def test_the_trial_students_have_the_trial_sizes() -> None:
    # quality.md: 97,392 parameters and 256 features; "191K" and 320 features.
    assert parameters("cnn4", 1.0) == 97_392
    assert parameters("cnn4_wide", 1.0) == 190_952
    assert build_student(StudentConfig(name="cnn4"), 64).embedding_dim == 256
    assert build_student(StudentConfig(name="cnn4_wide"), 64).embedding_dim == 320


def test_cnn4_refuses_a_wrong_number_of_channels() -> None:
    with pytest.raises(ConfigError, match="4 channel counts"):
        Cnn4((16, 32))
