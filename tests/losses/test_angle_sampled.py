"""Sampled triplets: what is drawn, and that the estimate is that of the whole loss."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.losses import angle_sampled
from pipeline.losses.angle_sampled import sampled_angle_wise
from pipeline.losses.angle_wise import angle_wise
from tests.losses.test_laws import draw, gradient_of


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_triples_are_of_three_different_rows_and_all_alike() -> None:
    batch, count = 5, 60_000
    first, second, third = angle_sampled._drawn(count, batch, seeded(0))
    assert not ((first == second) | (first == third) | (second == third)).any()
    counts = torch.bincount(first * batch**2 + second * batch + third, minlength=batch**3)
    drawn = counts[counts > 0]
    assert len(drawn) == batch * (batch - 1) * (batch - 2)
    expected = count / len(drawn)
    # Pearson's chi-squared: its mean is the degrees of freedom, its deviation the root of twice them.
    statistic = float(((drawn - expected) ** 2 / expected).sum())
    freedom = len(drawn) - 1
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def test_estimates_average_to_the_value_and_the_gradient_of_all_triplets() -> None:
    student, teacher = draw(0, 16, 6), draw(1, 16, 9)
    student[5], teacher[7] = student[4], teacher[6]
    want, want_gradient = angle_wise(student, teacher).item(), gradient_of(angle_wise, student, teacher)
    values, gradients = [], []
    for seed in range(60):
        loss = lambda s, t, g=seed: sampled_angle_wise(s, t, 4_000, seeded(g))  # noqa: E731
        values.append(loss(student, teacher).item())
        gradients.append(gradient_of(loss, student, teacher))
    spread = torch.tensor(values).std().item() / math.sqrt(len(values))
    assert abs(sum(values) / len(values) - want) < 4 * spread
    stacked = torch.stack(gradients)
    error = (stacked.mean(dim=0) - want_gradient).square().mean().sqrt()
    noise = (stacked.var(dim=0) / len(gradients)).mean().sqrt()
    # Both are root-mean-squares over 96 entries: a bias as large as the noise would double the first.
    assert error < 1.5 * noise


def test_parts_of_the_sample_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = draw(0, 16, 6), draw(1, 16, 9)
    loss = lambda s, t: sampled_angle_wise(s, t, 1_000, seeded(3))  # noqa: E731
    want, want_gradient = loss(student, teacher).item(), gradient_of(loss, student, teacher)
    assert loss(student, teacher).item() == want
    monkeypatch.setattr(angle_sampled, "TRIPLETS_AT_ONCE", 1_000)
    assert loss(student, teacher).item() == want
    assert torch.equal(gradient_of(loss, student, teacher), want_gradient)


def test_a_pair_that_is_too_close_has_its_gradient_capped_as_in_the_exact_loss() -> None:
    student, teacher = draw(0, 8, 6), draw(1, 8, 9)
    student[1] = student[0] + 1e-5 * draw(2, 6)
    want = gradient_of(angle_wise, student, teacher)
    got = gradient_of(lambda s, t: sampled_angle_wise(s, t, 200_000, seeded(0)), student, teacher)
    assert (got - want).abs().max() < 0.1 * want.abs().max()


def test_no_triplets_are_refused_and_two_rows_have_none() -> None:
    with pytest.raises(ConfigError, match="at least one triplet"):
        sampled_angle_wise(draw(0, 4, 3), draw(1, 4, 3), 0, seeded(0))
    assert sampled_angle_wise(draw(0, 2, 3), draw(1, 2, 3), 10, seeded(0)).item() == 0.0
