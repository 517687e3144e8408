"""Convolutions of a trained student, written again so that an int8 kernel has work for its whole width.

An activation is ``(batch, f * channels, frames, mels / f)``: ``f`` neighbouring mels are channels too. A grouped
convolution of few channels becomes one over fewer, wider groups whose added weights are zeros; a channel shuffle
becomes another order of channels. The sums are the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# Executed instructions of ONNX Runtime's int8 convolution on Cortex-A76, per output pixel and group: so many, so many
# for each tap, and one for so many MACs (fitted to counts of M0's layers; docs/int8.md).
GROUP_INSTRUCTIONS, TAP_INSTRUCTIONS = 50, 100
MACS_PER_INSTRUCTION = 8


@dataclass(frozen=True)
class Order:
    """Which mel of its block, and which of the student's channels, each channel of an activation is.

    Attributes:
        mel, channel: int64 ``(fold * channels,)``.
        fold: mels of a block.
    """

    mel: Int[Tensor, " wide"]
    channel: Int[Tensor, " wide"]
    fold: int

    @classmethod
    def of(cls, channels: Int[Tensor, " channels"], fold: int) -> Order:
        """Return the order that lists ``channels`` for the first mel of the block, then for the second, ..."""
        mel = torch.arange(fold).repeat_interleave(len(channels))
        return cls(mel, channels.repeat(fold), fold)

    def __len__(self) -> int:
        return len(self.channel)

    def shuffled(self, order: Int[Tensor, " channels"]) -> Order:
        """Return the same activation's order after ``index_select`` by ``order``, which then costs nothing."""
        return Order(self.mel, order.argsort()[self.channel], self.fold)

    def position(self) -> dict[tuple[int, int], int]:
        """Return where each (mel, channel) is."""
        return {key: at for at, key in enumerate(zip(self.mel.tolist(), self.channel.tolist(), strict=True))}


def folded_batch_norm(
    conv: nn.Conv2d, norm: nn.BatchNorm2d
) -> tuple[Float[Tensor, "outputs inputs taps"], Float[Tensor, " outputs"]]:
    """Return weight and bias of a convolution over one axis with the batch norm behind it, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.detach().double().flatten(2) * scale[:, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    return weight.detach(), bias.detach()


def time_conv(
    weight: Float[Tensor, "outputs inputs taps"],
    bias: Float[Tensor, " outputs"],
    *,
    groups: int,
    stride: int,
    before: Order,
    after: Order,
) -> nn.Conv2d:
    """Return a convolution over frames, padded by half its taps, between two orders of one fold; 1x1 with one tap."""
    wanted, mask = _dense(weight, groups)
    same = (after.mel[:, None] == before.mel[None])[..., None]
    at = (after.channel[:, None], before.channel[None])
    taps = weight.shape[2]
    return _conv(
        (wanted[at] * same)[..., None], (mask[at] & same[..., 0]), bias[after.channel],
        stride=(stride, 1), padding=(taps // 2, 0),
    )  # fmt: skip


def mel_conv(
    weight: Float[Tensor, "outputs inputs taps"],
    bias: Float[Tensor, " outputs"],
    *,
    groups: int,
    stride: int,
    before: Order,
    after: Order,
    one_block: bool = False,
) -> nn.Module:
    """Return a convolution over mels, padded by half its taps, from blocks to blocks.

    ``before.fold`` and ``after.fold`` are 1, or ``before.fold`` is ``stride * after.fold`` and divides the mels; or
    both hold all mels (``one_block``), and nothing is padded.
    """
    wanted, mask = _dense(weight, groups)
    taps = weight.shape[2]
    # Relative to the first mel of the block that the output block starts at.
    first = stride * after.mel - taps // 2
    blocks = torch.arange(int(first.min()) // before.fold, (int(first.max()) + taps - 1) // before.fold + 1)
    if one_block:
        blocks = torch.zeros(1, dtype=torch.int64)
    source = blocks[None, None] * before.fold + before.mel[None, :, None]
    tap = source - first[:, None, None]
    inside = (tap >= 0) & (tap < taps)
    out, into = after.channel[:, None, None], before.channel[None, :, None]
    values = torch.where(inside, wanted[out, into, tap.clamp(0, taps - 1)], 0.0)
    used = (mask[after.channel[:, None], before.channel[None]][..., None] & inside).any(dim=2)
    step = 1 if one_block else stride * after.fold // before.fold
    left, right = -int(blocks[0]), int(blocks[-1])
    conv = _conv(values[:, :, None], used, bias[after.channel], stride=(1, step), padding=(0, 0))
    if left == right:
        conv.padding = (0, left)
        return conv
    return nn.Sequential(nn.ZeroPad2d((left, right, 0, 0)), conv)


def depthwise(
    weight: Float[Tensor, "channels 1 taps"],
    bias: Float[Tensor, " channels"],
    *,
    over_mels: bool,
    stride: int,
    order: Order,
) -> nn.Conv2d:
    """Return a depthwise convolution of unfolded channels over one axis, padded by half its taps."""
    taps = weight.shape[2]
    values = weight[order.channel][..., None, :] if over_mels else weight[order.channel][..., None]
    half = taps // 2
    return _module(
        values, bias[order.channel], groups=len(order),
        stride=(1, stride) if over_mels else (stride, 1), padding=(0, half) if over_mels else (half, 0),
    )  # fmt: skip


def _dense(weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return the weight without groups, and where it is not zero by construction."""
    outputs, inside, taps = weight.shape
    dense = weight.new_zeros(outputs, inside * groups, taps)
    mask = torch.zeros(outputs, inside * groups, dtype=torch.bool)
    each = outputs // groups
    for group in range(groups):
        rows, columns = slice(group * each, (group + 1) * each), slice(group * inside, (group + 1) * inside)
        dense[rows, columns] = weight[rows]
        mask[rows, columns] = True
    return dense, mask


def _conv(
    values: Tensor, mask: Tensor, bias: Tensor, *, stride: tuple[int, int], padding: tuple[int, int]
) -> nn.Conv2d:
    groups = cheapest_groups(mask, values.shape[2] * values.shape[3])
    each = values.shape[0] // groups, values.shape[1] // groups
    grouped = torch.cat(
        [values[g * each[0] : (g + 1) * each[0], g * each[1] : (g + 1) * each[1]] for g in range(groups)]
    )
    return _module(grouped, bias, groups=groups, stride=stride, padding=padding)


def _module(
    values: Tensor, bias: Tensor, *, groups: int, stride: tuple[int, int], padding: tuple[int, int]
) -> nn.Conv2d:
    outputs, inside, *kernel = values.shape
    conv = nn.Conv2d(
        inside * groups, outputs, (kernel[0], kernel[1]), stride, padding, groups=groups, bias=True
    )
    assert conv.bias is not None
    with torch.no_grad():
        conv.weight.copy_(values)
        conv.bias.copy_(bias)
    return conv


def cheapest_groups(mask: Tensor, taps: int) -> int:
    """Return into how many equal groups a convolution is best cut, of those that ``mask`` ``(out, in)`` allows."""
    outputs, inputs = mask.shape

    def cost(groups: int) -> float:
        macs = (outputs // groups) * (inputs // groups) * taps
        return groups * (GROUP_INSTRUCTIONS + TAP_INSTRUCTIONS * taps + macs / MACS_PER_INSTRUCTION)

    def allowed(groups: int) -> bool:
        if outputs % groups or inputs % groups:
            return False
        rows = torch.arange(outputs) // (outputs // groups)
        columns = torch.arange(inputs) // (inputs // groups)
        return not bool((mask & (rows[:, None] != columns[None])).any())

    return min((g for g in range(1, min(outputs, inputs) + 1) if allowed(g)), key=cost)
