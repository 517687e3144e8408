"""What every loss must obey, whatever the numbers: zero at itself, invariances, precision, gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import ConfigError, OssicleError
from pipeline.losses.angle_sampled import sampled_angle_wise
from pipeline.losses.angle_wise import angle_wise
from pipeline.losses.contrastive import contrastive
from pipeline.losses.cosine_wise import cosine_wise
from pipeline.losses.distance_correlation import distance_correlation
from pipeline.losses.distance_wise import distance_wise
from pipeline.losses.feature_wise import feature_wise
from pipeline.losses.kernel_alignment import kernel_alignment
from pipeline.losses.similarity_preserving import similarity_preserving

Loss = Callable[[Tensor, Tensor], Tensor]


def clusters_of(batch: int) -> Tensor:
    return torch.arange(batch) % 3


RELATIONAL: dict[str, Loss] = {
    "distance": distance_wise,
    "angle": angle_wise,
    "angle_sampled": lambda s, t: sampled_angle_wise(s, t, 5_000, torch.Generator().manual_seed(0)),
    "distance_correlation": distance_correlation,
    "distance_correlation_free": lambda s, t: distance_correlation(s, t, "scale_free"),
    "similarity": similarity_preserving,
    "kernel": kernel_alignment,
    "kernel_rbf": lambda s, t: kernel_alignment(s, t, "rbf"),
    "kernel_unbiased": lambda s, t: kernel_alignment(s, t, unbiased=True),
    "cosine_mse": lambda s, t: cosine_wise(s, t, "mse"),
    "cosine_smooth_l1": lambda s, t: cosine_wise(s, t, "smooth_l1"),
    "cosine_l1": lambda s, t: cosine_wise(s, t, "l1"),
}
ROW_BY_ROW: dict[str, Loss] = {
    "feature_cosine": lambda s, t: feature_wise(s, t, "cosine"),
    "feature_mse": lambda s, t: feature_wise(s, t, "mse"),
    "feature_l1": lambda s, t: feature_wise(s, t, "l1"),
    "feature_smooth_l1": lambda s, t: feature_wise(s, t, "smooth_l1"),
}
# Their least value is not 0: they ask for more than equality.
CONTRASTIVE: dict[str, Loss] = {
    "clap": lambda s, t: contrastive(s, t, "clap"),
    "decoupled": lambda s, t: contrastive(s, t, "decoupled"),
    "cluster_negatives": lambda s, t: contrastive(s, t, "cluster_negatives", clusters=clusters_of(len(s))),
    "cluster_aware": lambda s, t: contrastive(s, t, "cluster_aware", clusters=clusters_of(len(s))),
    "cluster_negatives_excluded": lambda s, t: contrastive(
        s, t, "cluster_negatives", clusters=clusters_of(len(s)), masked="excluded"
    ),
    "cluster_aware_excluded": lambda s, t: contrastive(
        s, t, "cluster_aware", clusters=clusters_of(len(s)), masked="excluded"
    ),
}
SMALLEST_AT_ITSELF = RELATIONAL | ROW_BY_ROW
ALL = RELATIONAL | ROW_BY_ROW | CONTRASTIVE
LENGTH_FREE = ["cosine_mse", "cosine_smooth_l1", "cosine_l1", "feature_cosine", *CONTRASTIVE]
SHIFT_FREE = [
    "distance", "angle", "angle_sampled", "distance_correlation", "distance_correlation_free", "kernel",
    "kernel_rbf", "kernel_unbiased",
]  # fmt: skip
# The published constant makes it depend on the scale of either side.
SCALE_FREE = [name for name in RELATIONAL if name != "distance_correlation"]

batches = st.integers(3, 24)
seeds = st.integers(0, 2**31 - 1)
laws = settings(max_examples=15, deadline=None)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(seed: int, dim: int) -> Tensor:
    return torch.linalg.qr(draw(seed, dim, dim).double())[0].float()


def gradient_of(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    leaf = student.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, teacher), leaf)[0]


@pytest.mark.parametrize("name", SMALLEST_AT_ITSELF)
@laws
@given(batch=st.integers(4, 24), seed=seeds)
def test_identity_is_zero(name: str, batch: int, seed: int) -> None:
    rows = draw(seed, batch, 8)
    assert ALL[name](rows, rows).item() == pytest.approx(0.0, abs=1e-6)
    if name not in ("cosine_l1", "feature_l1"):
        assert gradient_of(ALL[name], rows, rows).abs().max() < 1e-6


@pytest.mark.parametrize("name", [*SMALLEST_AT_ITSELF, "clap", "decoupled", "cluster_negatives"])
@laws
@given(batch=st.integers(6, 24), seed=seeds)
def test_permuted_teacher_increases_loss(name: str, batch: int, seed: int) -> None:
    teacher = draw(seed, batch, 8)
    student = teacher + 0.01 * draw(seed + 1, batch, 8)
    moved = teacher.roll(1, dims=0)
    factor = 1.0 if name in CONTRASTIVE else 2.0
    assert ALL[name](student, moved) > factor * ALL[name](student, teacher)


# Sampled triplets are drawn by place, and clusters are given by place.
@pytest.mark.parametrize("name", [name for name in ALL if name != "angle_sampled" and "cluster" not in name])
@laws
@given(batch=batches, seed=seeds)
def test_permuting_both_sides_changes_nothing(name: str, batch: int, seed: int) -> None:
    student, teacher = draw(seed, batch, 8), draw(seed + 1, batch, 8)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    want = ALL[name](student, teacher).item()
    assert ALL[name](student[order], teacher[order]).item() == pytest.approx(want, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", SCALE_FREE)
@laws
@given(batch=batches, seed=seeds, log_scale=st.floats(-4, 4))
def test_rotation_and_scale_of_either_side_change_nothing(
    name: str, batch: int, seed: int, log_scale: float
) -> None:
    loss, scale = RELATIONAL[name], 10.0**log_scale
    student, teacher = draw(seed, batch, 8), draw(seed + 1, batch, 12)
    want = loss(student, teacher).item()
    got = loss(scale * student @ rotation(seed, 8), teacher @ rotation(seed, 12) / scale).item()
    assert got == pytest.approx(want, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("name", [*CONTRASTIVE, "feature_cosine", "feature_mse"])
@laws
@given(batch=batches, seed=seeds)
def test_one_rotation_of_both_sides_changes_nothing(name: str, batch: int, seed: int) -> None:
    student, teacher = draw(seed, batch, 8), draw(seed + 1, batch, 8)
    turn = rotation(seed, 8)
    want = ALL[name](student, teacher).item()
    assert ALL[name](student @ turn, teacher @ turn).item() == pytest.approx(want, rel=1e-4, abs=1e-6)


@laws
@given(batch=batches, seed=seeds)
def test_rotation_changes_no_distance_correlation_and_scale_does(batch: int, seed: int) -> None:
    student, teacher = draw(seed, batch, 8), draw(seed + 1, batch, 12)
    want = distance_correlation(student, teacher).item()
    turned = distance_correlation(student @ rotation(seed, 8), teacher @ rotation(seed, 12)).item()
    assert turned == pytest.approx(want, rel=1e-4, abs=1e-6)
    assert distance_correlation(student * 1e-4, teacher * 1e-4).item() > 0.99


@pytest.mark.parametrize("name", SHIFT_FREE)
@laws
@given(batch=batches, seed=seeds, size=st.floats(0.1, 100.0))
def test_shift_of_either_side_changes_nothing(name: str, batch: int, seed: int, size: float) -> None:
    loss = RELATIONAL[name]
    student, teacher = draw(seed, batch, 8), draw(seed + 1, batch, 12)
    want = loss(student, teacher).item()
    got = loss(student + size * draw(seed + 2, 8), teacher + size * draw(seed + 3, 12)).item()
    assert got == pytest.approx(want, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("loss", [cosine_wise, similarity_preserving])
def test_shift_changes_losses_that_look_from_the_origin(loss: Loss) -> None:
    student, teacher = draw(0, 16, 8), draw(1, 16, 12)
    assert abs(loss(student + 3.0, teacher) - loss(student, teacher)) > 0.01


@pytest.mark.parametrize("name", LENGTH_FREE)
@laws
@given(batch=batches, seed=seeds)
def test_length_of_each_row_changes_nothing(name: str, batch: int, seed: int) -> None:
    student, teacher = draw(seed, batch, 8), draw(seed + 1, batch, 8)
    lengths = draw(seed + 2, batch, 1).exp()
    want = ALL[name](student, teacher).item()
    assert ALL[name](student * lengths, teacher / lengths).item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_teacher_gets_no_gradient(name: str) -> None:
    student, teacher = draw(0, 8, 6).requires_grad_(), draw(1, 8, 6).requires_grad_()
    ALL[name](student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("name", ALL)
def test_no_gradient_is_made_where_none_is_wanted(name: str) -> None:
    student, teacher = draw(0, 8, 6), draw(1, 8, 6)
    with_gradient = ALL[name](student.clone().requires_grad_(), teacher)
    assert not ALL[name](student, teacher).requires_grad
    with torch.no_grad():
        assert ALL[name](student.requires_grad_(), teacher).item() == pytest.approx(with_gradient.item())


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    student = draw(3, 7, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ALL[name](s, draw(4, 7, 5).double()), student, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_also_under_autocast(name: str, dtype: torch.dtype) -> None:
    student, teacher = draw(0, 16, 8).to(dtype), draw(1, 16, 8).to(dtype)
    want = ALL[name](student.float(), teacher.float())
    leaf = student.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ALL[name](leaf, teacher)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    got.backward()
    assert leaf.grad is not None
    want_gradient = gradient_of(ALL[name], student.float(), teacher.float())
    assert (leaf.grad.float() - want_gradient).abs().max() <= 0.01 * want_gradient.abs().max()


@pytest.mark.parametrize("name", ALL)
def test_nan_is_not_swallowed(name: str) -> None:
    student = draw(0, 8, 6)
    student[3, 2] = torch.nan
    assert ALL[name](student, draw(1, 8, 6)).isnan()
    assert ALL[name](draw(1, 8, 6), student).isnan()


@pytest.mark.parametrize("name", ALL)
def test_unequal_rows_and_no_rows_are_refused(name: str) -> None:
    with pytest.raises((OssicleError, TypeError)):
        ALL[name](draw(0, 8, 6), draw(1, 7, 6))
    with pytest.raises(ConfigError, match="one row of the teacher"):
        ALL[name](draw(0, 0, 6), draw(1, 0, 6))


@pytest.mark.parametrize("name", RELATIONAL)
def test_gradient_descent_brings_the_student_to_the_teacher(name: str) -> None:
    teacher = draw(0, 24, 6)
    student = draw(1, 24, 8).requires_grad_()
    optimiser = torch.optim.Adam([student], lr=0.05)
    first = RELATIONAL[name](student, teacher).item()
    for _ in range(300):
        optimiser.zero_grad()
        loss = RELATIONAL[name](student, teacher)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05 * first
