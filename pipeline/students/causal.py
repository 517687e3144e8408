"""A student turned causal: no layer sees a frame of the future, so that it can listen to a stream.

Every convolution and pool over time looks back only (van den Oord et al., WaveNet, 2016), every mean over the clip
becomes the mean so far. Names and shapes of the parameters stay, so published weights load and are a start for
training; the numbers are another network's. Strides in time stay too: an embedding comes every ``step_frames``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.students import causal_layers as layers
from pipeline.students.base import Student
from pipeline.students.causal_layers import over_time
from pipeline.students.cp_mobile import GlobalResponseNorm
from pipeline.students.micronet import COEFFICIENT_RANGE, DynamicShiftMax
from pipeline.students.mobilenetv3 import SqueezeExcitation
from pipeline.students.pooling import (
    CausalMaxPool,
    CausalMeanMaxPool,
    CausalMeanPool,
    CausalStatisticsPool,
    MaxPool,
    MeanMaxPool,
    MeanPool,
    StatisticsPool,
)
from pipeline.students.running import Running, RunningMean

# Divisible by every stride in time that a family here has: powers of two to 256, their triples, nines and fives.
PROBE_FRAMES = 11_520
LEAST_NORM = 1e-12


@dataclass(frozen=True)
class CausalForm:
    """What a causal student says of itself.

    Attributes:
        step_frames: frames of a block: its last maps have one step for so many frames.
        memory_frames: the time constant of every running statistic; None where nothing is forgotten.
    """

    step_frames: int
    memory_frames: int | None


class CausalGlobalResponseNorm(nn.Module):
    """Global response normalisation by the norms over mel and the time so far; shares gamma and beta."""

    def __init__(self, layer: GlobalResponseNorm) -> None:
        super().__init__()
        self.gamma, self.beta = layer.gamma, layer.beta
        self.running = RunningMean()

    def forward(self, x: Float[Tensor, "batch channels mels steps"]) -> Tensor:
        """Return the normalised map; a norm is taken over the mean square, for only shares count."""
        energy = self.running(x.float().square().sum(dim=2))
        norm = torch.sqrt(energy + LEAST_NORM)
        share = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
        gain: Tensor = (self.gamma * share + 1.0).to(x.dtype)[:, :, None]
        return gain * x + self.beta.to(x.dtype)


class CausalSqueezeExcitation(nn.Module):
    """Squeeze-excitation whose gates follow the channels' running means; shares both linear layers."""

    def __init__(self, layer: SqueezeExcitation) -> None:
        super().__init__()
        self.fc1, self.fc2 = layer.fc1, layer.fc2
        self.running = RunningMean()

    def forward(self, x: Float[Tensor, "batch channels mels steps"]) -> Tensor:
        """Return ``x`` times the gates of each step."""
        means = self.running(x.float().mean(dim=2))
        gates = torch.sigmoid(over_time(self.fc2, torch.relu(over_time(self.fc1, means))))
        return x * gates[:, :, None].to(x.dtype)


class CausalDynamicShiftMax(nn.Module):
    """Dynamic shift-max whose coefficients follow the channels' running means; shares the linear layers."""

    def __init__(self, layer: DynamicShiftMax) -> None:
        super().__init__()
        self.fc, self.branches, self.init_a, self.init_b = (
            layer.fc, layer.branches, layer.init_a, layer.init_b,
        )  # fmt: skip
        self.register_buffer("index", layer.index, persistent=False)
        self.index: Tensor
        self.running = RunningMean()

    def forward(self, x: Float[Tensor, "batch channels mels steps"]) -> Tensor:
        """Return the maximum over branches of ``a(x) * x + b(x) * shifted x``."""
        first, _, second, _ = self.fc
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        hidden = torch.relu(over_time(first, self.running(x.float().mean(dim=2))))
        coefficients = (F.hardsigmoid(over_time(second, hidden)) - 0.5) * COEFFICIENT_RANGE
        parts = coefficients[:, :, None].to(x.dtype).chunk(2 * self.branches, dim=1)
        shifted = x.index_select(1, self.index)
        out: Tensor = x * (parts[0] + self.init_a[0]) + shifted * (parts[1] + self.init_b[0])
        if self.branches == 2:
            other = x * (parts[2] + self.init_a[1]) + shifted * (parts[3] + self.init_b[1])
            out = torch.maximum(out, other)
        return out


class WholeBlocks:
    """Follows a clip by zeros up to a whole number of blocks; a stream's :meth:`~.streaming.Stream.finish` too."""

    def __init__(self, step_frames: int) -> None:
        self.step_frames = step_frames

    def __call__(self, student: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        """Return the padded log-mel in place of the one given."""
        (log_mel,) = inputs
        return (F.pad(log_mel, (0, -log_mel.shape[3] % self.step_frames)),)


@singledispatch
def causal_form(module: Any) -> nn.Module:
    """Return what takes ``module``'s place in a causal network: itself, where it mixes no frames.

    A family with a layer of its own registers it: ``@causal_form.register``.
    """
    return module  # type: ignore[no-any-return]


causal_form.register(nn.Conv2d, layers.causal_convolution)
causal_form.register(nn.MaxPool2d, layers.causal_max_pool)
causal_form.register(nn.AvgPool2d, layers.causal_avg_pool)
causal_form.register(GlobalResponseNorm, CausalGlobalResponseNorm)
causal_form.register(SqueezeExcitation, CausalSqueezeExcitation)
causal_form.register(DynamicShiftMax, CausalDynamicShiftMax)
causal_form.register(MeanPool, lambda module: CausalMeanPool())
causal_form.register(MaxPool, lambda module: CausalMaxPool())
causal_form.register(MeanMaxPool, lambda module: CausalMeanMaxPool())
causal_form.register(StatisticsPool, lambda module: CausalStatisticsPool())


@causal_form.register(nn.AdaptiveAvgPool2d)
def _global_mean(module: nn.AdaptiveAvgPool2d) -> nn.Module:
    if module.output_size not in (1, (1, 1)):
        raise ConfigError("only a pool to 1 x 1 has a causal form", expected="1", got=module.output_size)
    return CausalMeanPool(keep_axes=True)


def make_causal(student: Student, mels: int, memory_frames: int | None = None) -> Student:
    """Turn ``student`` causal, in place, and return it. ``student.causal`` then says how.

    Its embedding of a clip is that after the last frame; of a clip cut short, that of a stream so far.

    Args:
        student: of a family with a causal form; its parameters are kept.
        mels: mel bands that it hears.
        memory_frames: None: its means are of everything so far, as on a clip; a number: they forget with that
            time constant, as a stream without an end wants.

    Raises:
        ConfigError: the family has no causal form, with the reason.
    """
    if student.not_causal is not None:
        raise ConfigError(
            f"{type(student).__name__} has no causal form: {student.not_causal}",
            expected="cnn4, cp_mobile_*, cp_resnet, dcase24_baseline, micronet_*, mn, mobile_fcn, eres2net, ...",
            got="student.causal = true",
            run="ossicle students lists which have one",
        )
    if student.causal is not None:
        raise ConfigError("the student is causal already", got=student.causal)
    _replace(student)
    student.at_any_length()
    steps = _steps_of(student, mels)
    shortest = min(steps.values())
    if PROBE_FRAMES % shortest:
        raise ConfigError(
            "the student's stride in time is no divisor of the probe", expected=PROBE_FRAMES, got=steps
        )
    student.causal = CausalForm(PROBE_FRAMES // shortest, memory_frames)
    if memory_frames is not None:
        for name, module in student.named_modules():
            if isinstance(module, Running):
                module.memory_steps = max(1, round(memory_frames * steps[name] / PROBE_FRAMES))
    student.register_forward_pre_hook(WholeBlocks(student.causal.step_frames))
    return student


def _replace(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        form = causal_form(child)
        if form is not child:
            setattr(parent, name, form)
        else:
            _replace(child)


def _steps_of(student: Student, mels: int) -> dict[str, int]:
    """Return how many time steps of the probe reach every layer that carries anything, and leave it."""
    probe = copy.deepcopy(student).to("meta").eval()
    steps: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            steps[name] = inputs[0].shape[-1]
            if isinstance(module, layers.LookingBack):
                steps[f"{name} out"] = output.shape[-1]

        return hook

    for name, module in probe.named_modules():
        if isinstance(module, Running | layers.LookingBack):
            module.register_forward_hook(note(name))
    with torch.no_grad():
        probe(torch.empty(1, 1, mels, PROBE_FRAMES, device="meta"))
    return steps
