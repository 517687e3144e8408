"""Learning rates, parameter groups and optimisers against torch's schedulers and the published formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ConstantLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError
from pipeline.training.optimiser import build_optimiser, gradient_norm, learning_rate, set_learning_rate
from pipeline.training.projector import Projector


def _published_ramp_down(
    step: int, warmup: int, start: float, length: float, last: float
) -> float:  # the shape that PaSST's and EfficientAT's papers give their learning rate
    rise = math.exp(-5.0 * (1.0 - np.clip(step, 0.5, warmup) / warmup) ** 2) if step < warmup else 1.0
    if step <= start:
        fall = 1.0
    elif step - start < length:
        fall = last + (1.0 - last) * (length - step + start) / length
    else:
        fall = last
    return rise * fall


def test_ramp_down_equals_the_published_schedule() -> None:
    """EfficientAT's: 200 epochs, 8 of warm-up, 80 until the rate falls, 95 while it falls to a hundredth."""
    config = TrainConfig(
        steps=200, schedule="ramp_down", warmup_steps=8, ramp_down_start_share=0.4, ramp_down_share=0.475,
        learning_rate=8e-4, final_learning_rate_share=0.01,
    )  # fmt: skip
    for step in range(210):
        want = 8e-4 * _published_ramp_down(step, 8, 80, 95, 0.01)
        assert learning_rate(step, config) == pytest.approx(want, rel=1e-9), step


def _torchs(schedule: str, optimiser: SGD) -> LRScheduler:
    warm = LinearLR(optimiser, start_factor=1 / 10, total_iters=9)
    if schedule == "constant":
        return SequentialLR(optimiser, [warm, ConstantLR(optimiser, factor=1.0)], milestones=[10])
    # MultiStepLR counts from where it takes over.
    steps = MultiStepLR(optimiser, milestones=[30 - 10, 45 - 10], gamma=0.2)
    return SequentialLR(optimiser, [warm, steps], milestones=[10])


@pytest.mark.parametrize("schedule", ["step", "constant"])
def test_step_and_constant_equal_torchs_schedulers(schedule: str) -> None:
    config = TrainConfig(
        steps=60, warmup_steps=10, learning_rate=0.3, schedule=schedule, milestone_shares=(0.5, 0.75),
        milestone_factor=0.2,
    )  # fmt: skip
    optimiser = SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = _torchs(schedule, optimiser)
    for step in range(60):
        assert learning_rate(step, config) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9), step
        optimiser.step()
        theirs.step()


def _model() -> nn.ModuleDict:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    return nn.ModuleDict({"student": student, "objective": Projector(2, 3)})


def test_the_longest_prefix_gives_a_parameter_its_share() -> None:
    model = _model()
    config = TrainConfig(
        learning_rate=0.1, learning_rate_shares={"student": 0.5, "student.2": 0.25, "student.0.bias": 0.0}
    )
    optimiser = build_optimiser(model, config)
    set_learning_rate(optimiser, 0.2)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    names = {name: rates.get(id(p)) for name, p in model.named_parameters()}
    assert names == {
        "student.0.weight": 0.1, "student.0.bias": None, "student.1.weight": 0.1, "student.1.bias": 0.1,
        "student.2.weight": 0.05, "student.2.bias": 0.05,
        "objective.linear.weight": 0.2, "objective.linear.bias": 0.2,
    }  # fmt: skip
    assert not model["student"][0].bias.requires_grad


def test_a_prefix_of_no_parameter_and_freezing_everything_are_refused() -> None:
    with pytest.raises(ConfigError, match="studnt") as raised:
        build_optimiser(_model(), TrainConfig(learning_rate_shares={"studnt": 0.5}))
    assert "student" in str(raised.value.expected)
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        build_optimiser(_model(), TrainConfig(learning_rate_shares={"student": 0, "objective": 0}))


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("adamw", lambda p: AdamW(p, lr=0.01, weight_decay=0.1, fused=False, foreach=False)),
        ("adam", lambda p: Adam(p, lr=0.01, weight_decay=0.1, fused=False, foreach=False)),
        ("sgd", lambda p: SGD(p, lr=0.01, weight_decay=0.1, momentum=0.9, fused=False, foreach=False)),
    ],
)
def test_updates_equal_torchs_plain_loop_whatever_the_memory_layout(kind: str, theirs: Any) -> None:
    """Weights in channels-last order, gradients that arrive in the other: the fused kernels must not mix them."""
    models = [nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[0].to(memory_format=torch.channels_last)
    decayed = [
        [p for p in models[1].parameters() if p.ndim > 1],
        [p for p in models[1].parameters() if p.ndim < 2],
    ]
    ours = build_optimiser(models[0], TrainConfig(optimiser=kind, learning_rate=0.01, weight_decay=0.1))
    reference = theirs([{"params": decayed[0]}, {"params": decayed[1], "weight_decay": 0.0}])
    for step in range(5):
        batch = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        for model, optimiser in zip(models, (ours, reference), strict=True):
            optimiser.zero_grad()
            model(batch).square().mean().backward()
            optimiser.step()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_norm_is_that_of_all_gradients_and_clips_only_where_asked() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    for parameter, values in zip(parameters, ([3.0, 0.0, 0.0], [0.0, 4.0]), strict=True):
        parameter.grad = torch.tensor(values)
    assert float(gradient_norm(parameters, None)) == pytest.approx(5.0)
    assert parameters[1].grad is not None
    assert parameters[1].grad.tolist() == [0.0, 4.0]
    assert float(gradient_norm(parameters, 1.0)) == pytest.approx(5.0)
    assert parameters[1].grad.tolist() == pytest.approx([0.0, 0.8], abs=1e-5)


@pytest.mark.parametrize(
    "keys",
    [
        {"ema_decay": 0.9, "swa_start_share": 0.5},
        {"early_stopping": 2, "early_stopping_metric": "probe_accuracy"},
        {"milestone_shares": (0.5, 1.0)},
        {"learning_rate_shares": {"student": -1.0}},
        {"start_from": "artifacts/run/x"},
    ],
)
def test_keys_that_cannot_be_together_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig(**keys)
