"""The optimiser, its parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, near_matches

MOMENTUM = 0.9


def build_optimiser(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return AdamW (Loshchilov and Hutter, 2019), Adam or SGD, with weight decay on matrices and kernels alone.

    Each group carries ``share``, the factor of the learning rate that ``train.learning_rate_shares`` gives it.
    A share of 0 freezes: those parameters no longer require a gradient.

    Raises:
        ConfigError: a prefix names no parameter, or nothing is left to train.
    """
    shares = parameter_shares(model, config.learning_rate_shares)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if shares[name] == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            groups.setdefault((shares[name], parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise ConfigError(
            "every parameter is frozen, nothing would be trained",
            expected="a share above 0, or a trained head", got=config.learning_rate_shares,
            run="see train.learning_rate_shares and train.frozen_backbone",
        )  # fmt: skip
    listed = [
        {"params": chosen, "weight_decay": config.weight_decay if decayed else 0.0, "share": share}
        for (share, decayed), chosen in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]
    rate = config.learning_rate
    if config.optimiser == "sgd":
        return SGD(listed, lr=rate, momentum=MOMENTUM, fused=True)
    # One kernel for all parameters: on a CPU a third of the loop's time for students of a hundred tensors.
    kind = AdamW if config.optimiser == "adamw" else Adam
    return kind(listed, lr=rate, fused=True)


def parameter_shares(model: nn.Module, shares: dict[str, float]) -> dict[str, float]:
    """Return each parameter's factor of the learning rate: that of the longest prefix of its name, else 1.

    Raises:
        ConfigError: a prefix is no name of a module or parameter with parameters.
    """
    found = dict.fromkeys((name for name, _ in model.named_parameters()), 1.0)
    for prefix, share in sorted(shares.items(), key=lambda item: len(item[0])):
        chosen = [name for name in found if name == prefix or name.startswith(f"{prefix}.")]
        if not chosen:
            parts = {name.rsplit(".", depth)[0] for name in found for depth in range(name.count(".") + 1)}
            raise ConfigError(
                f"train.learning_rate_shares names no parameters: {prefix!r}",
                expected=near_matches(prefix, parts), got=prefix,
            )  # fmt: skip
        found.update(dict.fromkeys(chosen, share))
    return found


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    """Give every group its share of ``rate``."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of update ``step`` (0-based).

    ``cosine``: the first update after the warm-up has the full rate, the last of the run the final share.
    ``ramp_down``: the schedule of PaSST and EfficientAT (Koutini et al., Interspeech 2022; Schmid et al., ICASSP
    2023), ``exp(-5 (1 - step / warmup)^2)`` times a line from 1 to the final share. ``step``: times the factor at
    every milestone passed. All but ``ramp_down`` warm up linearly.
    """
    if config.schedule == "ramp_down":
        return config.learning_rate * _exponential_warmup(step, config) * _ramp_down(step, config)
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "step":
        passed = sum(step >= share * config.steps for share in config.milestone_shares)
        return config.learning_rate * config.milestone_factor**passed
    last = max(config.steps - config.warmup_steps - 1, 1)
    progress = min((step - config.warmup_steps) / last, 1.0)
    final = config.final_learning_rate_share
    return config.learning_rate * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def _exponential_warmup(step: int, config: TrainConfig) -> float:
    if step >= config.warmup_steps:
        return 1.0
    # Half a unit at least, as published, so that the first update is not without any rate.
    missing = 1.0 - max(step, 0.5) / config.warmup_steps
    return math.exp(-5.0 * missing * missing)


def _ramp_down(step: int, config: TrainConfig) -> float:
    start, length = config.ramp_down_start_share * config.steps, config.ramp_down_share * config.steps
    left = min(max(1.0 - (step - start) / length, 0.0), 1.0)
    return config.final_learning_rate_share + (1 - config.final_learning_rate_share) * left


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def gradient_norm(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Clip the gradients to a norm of ``limit`` (None = not at all) and return the norm before, a scalar."""
    if limit is None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients, foreach=True)
    return torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
