"""Rounding that can be trained through: a step size with a gradient, straight through to the values.

Esser, McKinstry, Bablani, Appuswamy and Modha, "Learned step size quantization" (LSQ), ICLR 2020. Zero points stay
as calibrated: the exporter folds a ReLU into the lower end of a range whose zero point is the least integer.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def fake_quantise(
    values: Float[Tensor, "*shape"],
    step: Float[Tensor, "*steps"],
    *,
    low: int,
    high: int,
    axis: int | None = None,
) -> Float[Tensor, "*shape"]:
    """Return ``clamp(round(values / step), low, high) * step``, halves to even as ONNX's QuantizeLinear rounds.

    The gradient to ``values`` is that of the result inside the range and 0 beyond. That to ``step`` is, with
    ``v = values / step``, the sum of the result's gradient times ``round(v) - v`` inside, ``low`` or ``high`` beyond
    (LSQ, equation 3; without its factor, which cancels under Adam).

    Args:
        values: what is rounded.
        step: positive; a scalar, or one for each index of ``axis``.
        low: least integer minus the zero point; high: greatest integer minus the zero point.
        axis: of the values, where there are several steps.
    """
    if step.ndim:
        shape = [1] * values.ndim
        shape[0 if axis is None else axis] = step.numel()
        step = step.reshape(shape)
    return _FakeQuantise.apply(values, step, low, high)  # type: ignore[no-any-return]


class _FakeQuantise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        ratio = values / step
        ctx.save_for_backward(ratio)
        ctx.range, ctx.step_shape = (low, high), step.shape
        return ratio.round().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (ratio,) = ctx.saved_tensors
        low, high = ctx.range
        inside = (ratio >= low) & (ratio <= high)
        of_values = gradient * inside if ctx.needs_input_grad[0] else None
        of_step = None
        if ctx.needs_input_grad[1]:
            slope = ratio.round().clamp_(low, high).sub_(ratio * inside)
            of_step = (gradient * slope).sum_to_size(ctx.step_shape)
        return of_values, of_step, None, None


def rounded_through(
    values: Float[Tensor, "*shape"], step: Float[Tensor, "*steps"]
) -> Float[Tensor, "*shape"]:
    """Return ``round(values / step) * step`` of a bias, whose integers have 32 bits.

    The gradient goes straight through to the values; the step is the product of two others and gets none from here.
    """
    fixed = step.detach()
    return values + (bias_levels(values, fixed) * fixed - values).detach()


def bias_levels(values: Float[Tensor, "*shape"], step: Float[Tensor, "*steps"]) -> Float[Tensor, "*shape"]:
    """Return the integers that stand for ``values``, as float32; steps too small for 32 bits saturate."""
    # The greatest float32 below 2^31.
    limit = float(2**31 - 128)
    return (values / step).round().clamp(-limit, limit)
