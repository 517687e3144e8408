"""Batch-norm statistics where a batch is spread over processes, and batch norms that are left as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.training.distributed import peers


class SynchronisedBatchNorm(_BatchNorm):
    """A batch norm over the rows of all processes, for devices that torch's own does not serve (the CPU).

    Same entries, momentum and evaluation as ``nn.BatchNorm1d/2d/3d``. Moments are combined after Chan, Golub and
    LeVeque (1983), not from sums of squares, whose difference cancels.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (batch, channels, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` normalised channel by channel, ``(batch, channels, ...)``."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        rows = input.float()
        axes = [axis for axis in range(rows.ndim) if axis != 1]
        variance, mean = torch.var_mean(rows.detach(), dim=axes, correction=0)
        own = torch.full_like(mean[:1], rows.numel() / rows.shape[1])
        packed = torch.cat([mean, variance, own])
        parts = [torch.empty_like(packed) for _ in range(dist.get_world_size())]
        with peers():
            dist.all_gather(parts, packed)
        moments = torch.stack(parts)
        counts = moments[:, -1:]
        means, variances = moments[:, :-1].chunk(2, dim=1)
        total = counts.sum()
        mean = (means * counts).sum(dim=0) / total
        variance = ((variances + (means - mean).square()) * counts).sum(dim=0) / total
        self._note(mean, variance, total)
        inverse = torch.rsqrt(variance + self.eps)
        out: Tensor = _Normalise.apply(rows, mean, inverse, self.weight, self.bias, total)
        return out.to(input.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (total / (total - 1)), share)


class _Normalise(torch.autograd.Function):
    """Normalisation by moments of all processes; its gradient sums over all of them too."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None,
        total: Tensor,
    ) -> Tensor:  # fmt: skip
        shape = [1, -1] + [1] * (rows.ndim - 2)
        normal = (rows - mean.view(shape)) * inverse.view(shape)
        ctx.save_for_backward(normal, inverse, weight, total)
        if weight is None or bias is None:
            return normal
        return torch.addcmul(bias.view(shape), normal, weight.view(shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = outputs
        normal, inverse, weight, total = ctx.saved_tensors
        shape = [1, -1] + [1] * (normal.ndim - 2)
        axes = [axis for axis in range(normal.ndim) if axis != 1]
        over_bias = gradient.sum(dim=axes)
        over_weight = (gradient * normal).sum(dim=axes)
        sums = torch.cat([over_bias, over_weight])
        with peers():
            dist.all_reduce(sums)
        mean_bias, mean_weight = (sums / total).chunk(2)
        scale = inverse if weight is None else inverse * weight
        centred = gradient - mean_bias.view(shape) - normal * mean_weight.view(shape)
        over_rows = centred * scale.view(shape)
        if weight is None:
            return over_rows, None, None, None, None, None
        return over_rows, None, None, over_weight, over_bias, None


def synchronise(student: nn.Module, device: torch.device) -> nn.Module:
    """Return ``student`` with batch norms over all processes; names of its entries stay.

    On CUDA torch's own ``SyncBatchNorm``, on the CPU :class:`SynchronisedBatchNorm`.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(student)
        return converted
    for parent in list(student.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SynchronisedBatchNorm):
                setattr(parent, name, _converted(child))
    return student


def _converted(norm: _BatchNorm) -> SynchronisedBatchNorm:
    made = SynchronisedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    made.weight, made.bias = norm.weight, norm.bias
    made.running_mean, made.running_var = norm.running_mean, norm.running_var
    made.num_batches_tracked = norm.num_batches_tracked
    return made.train(norm.training)


def norms_of(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of ``module`` that keep statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Put the batch norms' running statistics back at the end."""
    buffers = [buffer for norm in norms_of(module) for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
