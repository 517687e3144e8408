"""Convolution and pooling that look back only: what a stride needs of the past, never a frame of the future."""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.students.running import Carrying

Pair = int | tuple[int, ...]


def pair(value: Pair) -> tuple[int, int]:
    """Return ``value`` for mel and for time."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class LookingBack(Carrying):
    """A sliding layer whose output step j ends with input step ``(j + 1) * stride - 1``: its block's last.

    Attributes:
        past_steps: input steps wanted before a block: ``dilation * (kernel - 1) + 1 - stride``; below 0 so many
            of a block's first steps are not looked at.
        past_value: what stands before the first step.
    """

    past_steps: int
    past_value: float = 0.0

    @property
    def carries(self) -> tuple[str, ...]:  # type: ignore[override]
        """The past, where there is any to carry."""
        return ("past",) if self.past_steps > 0 else ()

    def initial(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return ``(batch, channels, mels, past_steps)`` of ``past_value``."""
        if self.past_steps <= 0:
            return ()
        shape = (*x.shape[:3], self.past_steps)
        return (torch.full(shape, self.past_value, dtype=x.dtype, device=x.device),)

    def with_past(self, x: Float[Tensor, "batch channels mels steps"]) -> Tensor:
        """Return ``x`` with its past before it."""
        if self.past_steps <= 0:
            return x[..., -self.past_steps :] if self.past_steps else x
        if self.carried is None:
            return F.pad(x, (self.past_steps, 0), value=self.past_value)
        x = torch.cat([self.carried[0], x], dim=3)
        self.carried = (x[..., -self.past_steps :],)
        return x


class CausalConv2d(LookingBack, nn.Conv2d):
    """A convolution padded over mel as it was, over time by the past alone. Same parameters, same names."""

    def forward(self, input: Float[Tensor, "batch inputs mels steps"]) -> Tensor:
        """Return ``(batch, outputs, mels', steps / stride)``; ``steps`` is a multiple of the stride."""
        return super().forward(self.with_past(input))


class CausalMaxPool2d(LookingBack, nn.MaxPool2d):
    """Maximum pooling that looks back only; what is before the first step is minus infinity."""

    past_value = -torch.inf

    def forward(self, input: Float[Tensor, "batch channels mels steps"]) -> Tensor:
        """Return ``(batch, channels, mels', steps / stride)``."""
        return super().forward(self.with_past(input))  # type: ignore[no-any-return]


class CausalAvgPool2d(LookingBack, nn.AvgPool2d):
    """Mean pooling that looks back only; what is before the first step counts as zeros."""

    def forward(self, input: Float[Tensor, "batch channels mels steps"]) -> Tensor:
        """Return ``(batch, channels, mels', steps / stride)``."""
        return super().forward(self.with_past(input))


Sliding = TypeVar("Sliding", CausalConv2d, CausalMaxPool2d, CausalAvgPool2d)


def causal_convolution(layer: nn.Conv2d) -> CausalConv2d:
    """Return the causal form of a convolution; it shares the parameters.

    Raises:
        ConfigError: its padding is neither zeros nor a number.
    """
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise _impossible(layer)
    causal = CausalConv2d(
        layer.in_channels, layer.out_channels, pair(layer.kernel_size), pair(layer.stride),
        (pair(layer.padding)[0], 0), pair(layer.dilation), layer.groups, bias=False, device="meta",
    )  # fmt: skip
    causal.weight, causal.bias = layer.weight, layer.bias
    causal.past_steps = _past(pair(layer.kernel_size)[1], pair(layer.stride)[1], pair(layer.dilation)[1])
    return causal


def causal_max_pool(layer: nn.MaxPool2d) -> CausalMaxPool2d:
    """Return the causal form of maximum pooling."""
    kernel, stride, dilation = pair(layer.kernel_size), pair(layer.stride), pair(layer.dilation)
    causal = CausalMaxPool2d(kernel, stride, (pair(layer.padding)[0], 0), dilation, ceil_mode=layer.ceil_mode)
    causal.past_steps = _past(kernel[1], stride[1], dilation[1])
    return causal


def causal_avg_pool(layer: nn.AvgPool2d) -> CausalAvgPool2d:
    """Return the causal form of mean pooling.

    Raises:
        ConfigError: the layer leaves its padding out of the mean, or its last windows incomplete.
    """
    padding = pair(layer.padding)
    if layer.ceil_mode or (padding[1] and not layer.count_include_pad):
        raise _impossible(layer)
    kernel, stride = pair(layer.kernel_size), pair(layer.stride)
    causal = CausalAvgPool2d(
        kernel, stride, (padding[0], 0), count_include_pad=layer.count_include_pad,
        divisor_override=layer.divisor_override,
    )  # fmt: skip
    causal.past_steps = _past(kernel[1], stride[1], 1)
    return causal


def over_time(
    layer: nn.Linear, x: Float[Tensor, "batch inputs steps"]
) -> Float[Tensor, "batch outputs steps"]:
    """Return ``layer`` at every step, channels staying where they are."""
    return F.conv1d(x, layer.weight[:, :, None], layer.bias)


def _past(kernel: int, stride: int, dilation: int) -> int:
    return dilation * (kernel - 1) + 1 - stride


def _impossible(layer: nn.Module) -> ConfigError:
    return ConfigError(
        "a layer of this student has no causal form",
        expected="zero padding, counted in every mean",
        got=layer,
    )
