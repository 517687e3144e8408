"""Rounding that is trained through: its values against a literal formula, its gradients against autograd's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.quantisation.fake_quantise import bias_levels, fake_quantise, rounded_through


def literal(values: np.ndarray, step: float, zero_point: int, least: int, greatest: int) -> np.ndarray:
    """ONNX's QuantizeLinear, then DequantizeLinear, a number at a time in Python's own integers."""
    made = np.empty_like(values)
    for place, value in np.ndenumerate(values):
        ratio = np.float32(value) / np.float32(step)
        below = math.floor(ratio)
        rest = float(ratio) - below
        nearest = below if rest < 0.5 or (rest == 0.5 and below % 2 == 0) else below + 1
        stored = min(max(nearest + zero_point, least), greatest)
        made[place] = np.float32(stored - zero_point) * np.float32(step)
    return made


@pytest.mark.parametrize(("zero_point", "least", "greatest"), [(-128, -128, 127), (3, -128, 127), (0, -127, 127),
                                                               (128, 0, 255), (0, -32768, 32767)])  # fmt: skip
def test_values_are_those_of_the_literal_formula(zero_point: int, least: int, greatest: int) -> None:
    generator = np.random.default_rng(1_000 + zero_point)
    step = float(np.float32(generator.uniform(0.01, 0.2)))
    values = (generator.standard_normal((3, 50)) * 9).astype(np.float32)
    values[0, :8] = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1e6, -1e6], np.float32) * np.float32(step)
    made = fake_quantise(
        torch.from_numpy(values), torch.tensor(step), low=least - zero_point, high=greatest - zero_point
    )
    np.testing.assert_array_equal(made.numpy(), literal(values, step, zero_point, least, greatest))


def test_every_channel_has_its_own_step() -> None:
    generator = np.random.default_rng(5)
    values = generator.standard_normal((4, 6, 3)).astype(np.float32)
    steps = generator.uniform(0.005, 0.02, 6).astype(np.float32)
    made = fake_quantise(torch.from_numpy(values), torch.from_numpy(steps), low=-127, high=127, axis=1)
    for channel, step in enumerate(steps):
        want = literal(values[:, channel], float(step), 0, -127, 127)
        np.testing.assert_array_equal(made[:, channel].numpy(), want)


def composed(values: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """The formula of LSQ with its straight-through estimator, left to autograd."""
    ratio = (values / step).clamp(low, high)
    return (ratio + (ratio.round() - ratio).detach()) * step


@pytest.mark.parametrize("channels", [None, 5])
def test_gradients_are_those_of_autograd_on_the_formula(channels: int | None) -> None:
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(8, 5, 4, generator=generator, dtype=torch.float64) * 3
    step = torch.rand(channels or (), generator=generator, dtype=torch.float64) * 0.05 + 0.01
    weight = torch.randn(8, 5, 4, generator=generator, dtype=torch.float64)
    found = []
    for ours in (True, False):
        x, s = values.clone().requires_grad_(), step.clone().requires_grad_()
        if ours:
            made = fake_quantise(x, s, low=-100, high=27, axis=1 if channels else None)
        else:
            made = composed(x, s.reshape(1, -1, 1) if channels else s, -100, 27)
        (made * weight).sum().backward()
        found.append((x.grad, s.grad))
    (ours_x, ours_s), (want_x, want_s) = found
    assert 0 < int((ours_x == 0).sum()) < values.numel()
    torch.testing.assert_close(ours_x, want_x, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(ours_s, want_s, rtol=1e-9, atol=1e-9)


def test_the_step_moves_towards_less_error() -> None:
    """Adam on the step alone, from one that clips half of the values, ends within what rounding alone costs."""
    values = torch.linspace(-1.0, 1.0, 999)
    log_step = torch.tensor(math.log(0.5 / 127), requires_grad=True)
    optimiser = torch.optim.Adam([log_step], lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        loss = (fake_quantise(values, log_step.exp(), low=-127, high=127) - values).square().mean()
        loss.backward()
        optimiser.step()
    best = (1 / 127) ** 2 / 12
    assert loss.item() < 1.5 * best


def test_a_bias_is_rounded_to_its_step_and_its_gradient_goes_straight_through() -> None:
    values = torch.tensor([0.31, -0.05, 7.0, 1e9], requires_grad=True)
    step = torch.tensor([0.1, 0.1, 2.0, 1e-3], requires_grad=True)
    made = rounded_through(values, step)
    (made * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    np.testing.assert_allclose(made[0].item(), 0.3, atol=1e-7)
    assert abs(made[1].item()) < 1e-7 or abs(made[1].item() + 0.1) < 1e-7
    assert made[2].item() in (6.0, 8.0)
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert step.grad is None
    levels = bias_levels(values.detach(), step.detach())
    assert int(levels[3]) == 2**31 - 128
    assert levels.to(torch.int32).tolist() == [int(level) for level in levels]
