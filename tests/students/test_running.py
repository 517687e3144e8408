"""Running statistics against the recursions that define them, whole and in blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.students.running import (
    MOST_STEPS,
    LastMean,
    Running,
    RunningDeviation,
    RunningMax,
    RunningMean,
    running_weights,
)

MEMORIES = [None, 1, 4, 9, 100]
BLOCKS = [1, 3, 2, 7, 1, 10]


def signal(steps: int = sum(BLOCKS)) -> Tensor:
    return torch.randn(2, 3, steps, generator=torch.Generator().manual_seed(0)).double().float()


def literal_means(x: Tensor, memory: int | None) -> Tensor:
    mean = torch.zeros(x.shape[:-1], dtype=torch.float64)
    means = []
    for number, step in enumerate(x.double().unbind(-1), start=1):
        mean = mean + (step - mean) / min(number, memory or number)
        means.append(mean)
    return torch.stack(means, -1)


def streamed(layer: Running, x: Tensor) -> list[Tensor]:
    """Return the layer's outputs block by block."""
    outputs = []
    carried = layer.initial(x)
    assert len(carried) == len(layer.carries)
    for block in x.split(BLOCKS, dim=-1):
        layer.carried = carried
        outputs.append(layer(block))
        carried = layer.carried
    layer.carried = None
    return outputs


@pytest.mark.parametrize("memory", MEMORIES)
def test_running_mean_is_the_recursion(memory: int | None) -> None:
    x, layer = signal(), RunningMean(memory)
    want = literal_means(x, memory).float()
    torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat(streamed(layer, x), -1), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", MEMORIES)
def test_last_mean_is_the_last_of_the_running_means(memory: int | None) -> None:
    x, layer = signal(), LastMean(memory)
    want = literal_means(x, memory).float()
    torch.testing.assert_close(layer(x), want[..., -1], rtol=1e-5, atol=1e-6)
    for end, got in zip(torch.tensor(BLOCKS).cumsum(0).tolist(), streamed(layer, x), strict=True):
        torch.testing.assert_close(got, want[..., end - 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", MEMORIES)
def test_running_maximum_is_that_of_the_last_steps(memory: int | None) -> None:
    x, layer = signal(), RunningMax(memory)
    for end, got in zip(torch.tensor(BLOCKS).cumsum(0).tolist(), streamed(layer, x), strict=True):
        want = x[..., max(0, end - (memory or end)) : end].max(-1).values
        assert torch.equal(got, want)
        assert torch.equal(layer(x[..., :end]), want)


@pytest.mark.parametrize("memory", MEMORIES)
def test_running_deviation_is_the_weighted_one(memory: int | None) -> None:
    x, layer = signal(), RunningDeviation(1e-8, memory)
    for end, (mean, deviation) in zip(
        torch.tensor(BLOCKS).cumsum(0).tolist(), streamed(layer, x), strict=True
    ):
        heard = x[..., :end].double()
        # The weight of each step: the recursion on the rows of the identity.
        weights = literal_means(torch.eye(end), memory)[:, -1]
        want_mean = (heard * weights).sum(-1)
        variance = ((heard - want_mean[..., None]) ** 2 * weights).sum(-1)
        count = min(end, memory or end)
        want = (variance * (count / max(1, count - 1)) + 1e-8).sqrt()
        for got_mean, got in ((mean, deviation), layer(x[..., :end])):
            torch.testing.assert_close(got_mean, want_mean.float(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-6)


def test_without_memory_the_deviation_is_torchs_unbiased_one() -> None:
    x = signal()
    mean, deviation = RunningDeviation(1e-8)(x)
    torch.testing.assert_close(mean, x.mean(-1))
    torch.testing.assert_close(deviation, x.std(-1))


def test_a_counter_that_stands_still_changes_no_weight() -> None:
    for count in (7.0, 8.0, 1000.0):
        weights, kept = running_weights(torch.tensor([count]), 5, 7)
        still, kept_still = running_weights(torch.tensor([7.0]), 5, 7)
        torch.testing.assert_close(weights, still, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(kept, kept_still, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weights.sum(1) + kept, torch.ones(5))


def test_the_counter_of_an_endless_stream_never_outgrows_float32() -> None:
    layer = RunningMean()
    layer.carried = (torch.zeros(1, 1), torch.tensor([float(MOST_STEPS - 1)]))
    for _ in range(3):
        layer(torch.ones(1, 1))
        assert layer.carried is not None
        assert layer.carried[1].item() == MOST_STEPS
        assert math.isfinite(layer.carried[0].item())
    assert 0 < layer.carried[0].item() < 1e-6
