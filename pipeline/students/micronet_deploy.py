"""MicroNet as it is deployed: the trained network's sums in a graph that int8 kernels are fast at.

Equal in output to float32's rounding. What changes (measured on Cortex-A76, docs/int8.md):

- a micro-factorised convolution that widens each channel is cut into as many groups as channels, and int8 pays
  for each group: few wide groups instead, and in the first blocks neighbouring mels as channels;
- batch norms, the input's normalisation and channel shuffles are in the weights;
- dynamic shift-max works on channels-last maps, its shift is two or three slices, and its factor of 4 is in the
  weights that follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.students.folded import Order, depthwise, folded_batch_norm, mel_conv, time_conv
from pipeline.students.micronet import (
    COEFFICIENT_RANGE,
    ChannelShuffle,
    DynamicShiftMax,
    GroupConv,
    MicroBlock,
    MicroNet,
    SeparableConv,
    Stem,
)

# Channels, mels included, that the first blocks' kernels are given.
FOLDED_CHANNELS = 48
# Below so many channels, the coefficients are written out for every mel: products in longer runs.
LONG_RUN = 128
Layer = TypeVar("Layer", bound=nn.Module)


class DeployedShiftMax(nn.Module):
    """:class:`DynamicShiftMax` over channels-last maps, of which it returns a quarter where ``quartered``.

    Its coefficients' network and its products stay in float: int8 executes more instructions for them.
    """

    computes_in_float = True

    def __init__(self, trained: DynamicShiftMax, order: Order, *, blocks: int, quartered: bool) -> None:
        super().__init__()
        self.branches, self.wide = trained.branches, len(order)
        self.blocks = blocks if self.wide < LONG_RUN else 1
        first, second = trained.fc[0], trained.fc[2]
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        channels = len(trained.index)
        self.squeeze = nn.Linear(self.wide, first.out_features)
        # Chunks of the trained layer: for each branch a, then b. Here: a of each branch, then b of each.
        parts = [2 * branch + part for part in (0, 1) for branch in range(self.branches)]
        rows = [(order.channel + channels * part).repeat(self.blocks) for part in parts]
        self.excite = nn.Linear(first.out_features, len(rows) * self.blocks * self.wide)
        starts = [
            part[branch] for part in (trained.init_a, trained.init_b) for branch in range(self.branches)
        ]
        offset = torch.tensor(starts).repeat_interleave(self.blocks * self.wide) / COEFFICIENT_RANGE - 0.5
        self.register_buffer("offset", offset)
        self.offset: Tensor
        self.factor = 1.0 if quartered else COEFFICIENT_RANGE
        with torch.no_grad():
            self.squeeze.weight.copy_(first.weight[:, order.channel] / order.fold)
            self.squeeze.bias.copy_(first.bias)
            self.excite.weight.copy_(second.weight[torch.cat(rows)])
            self.excite.bias.copy_(second.bias[torch.cat(rows)])
        self.runs = _runs(order, trained.index)

    def forward(self, x: Float[Tensor, "batch channels frames mels"]) -> Tensor:
        """Return the same shape."""
        means = x.mean(dim=(2, 3), keepdim=True).flatten(1)
        gates = nn.functional.hardsigmoid(self.excite(torch.relu(self.squeeze(means)))) + self.offset
        if self.factor != 1.0:
            gates = gates * self.factor
        x = x.permute(0, 2, 3, 1)
        shifted = torch.cat([x[..., first:last] for first, last in self.runs], dim=3)
        if self.branches == 1:
            own, other = gates.unflatten(1, (1, 2 * self.blocks, self.wide)).chunk(2, dim=2)
            out: Tensor = x * own + shifted * other
        else:
            # One product and one sum for both: each node costs thousands of instructions, however small it is.
            own, other = gates.unflatten(1, (4, 1, self.blocks, self.wide)).chunk(2, dim=1)
            first, second = (x[:, None] * own + shifted[:, None] * other).chunk(2, dim=1)
            out = torch.maximum(first, second).squeeze(1)
        return out.permute(0, 3, 1, 2)


def _runs(order: Order, index: Tensor) -> list[tuple[int, int]]:
    """Return the slices of channels that, one after the other, are the shifted channels."""
    position = order.position()
    source = [
        position[mel, int(index[channel])]
        for mel, channel in zip(order.mel.tolist(), order.channel.tolist(), strict=True)
    ]
    runs: list[tuple[int, int]] = []
    for at in source:
        if runs and runs[-1][1] == at:
            runs[-1] = (runs[-1][0], at + 1)
        else:
            runs.append((at, at + 1))
    return runs


def shift_order(index: Tensor, fold: int) -> Order:
    """Return the order in which the shift ``index`` moves every channel by the same distance, around the end.

    The shift's cycles are of one length: the first channel of each, for every mel of the block, then the second.
    """
    following, seen = [int(at) for at in index], set[int]()
    cycles: list[list[int]] = []
    for start in range(len(following)):
        if start not in seen:
            cycle = [start]
            while following[cycle[-1]] != start:
                cycle.append(following[cycle[-1]])
            seen.update(cycle)
            cycles.append(cycle)
    steps = torch.tensor(cycles).T
    mel = torch.arange(fold).repeat_interleave(len(cycles)).repeat(len(steps))
    return Order(mel, steps.repeat(1, fold).flatten(), fold)


def grouped_order(groups: int, channels: int) -> Order:
    """Return an order that keeps a grouped convolution's outputs together and makes the shift three slices.

    The shift goes to the next group and one further: slot t of group a is its channel t + a.
    """
    each = channels // groups
    group = torch.arange(groups).repeat_interleave(each)
    slot = torch.arange(each).repeat(groups)
    return Order(torch.zeros(channels, dtype=torch.int64), group * each + (slot + group) % each, 1)


class MelsAsChannels(nn.Module):
    """``(batch, 1, mels, frames)`` to ``(batch, mels, frames, 1)``."""

    def forward(self, log_mel: Float[Tensor, "batch 1 mels frames"]) -> Tensor:
        """Return the same values."""
        return log_mel.flatten(1, 2)[..., None]


class Blocks(nn.Module):
    """``(batch, blocks * wide, frames, 1)`` to ``(batch, wide, frames, blocks)``: no move where channels are last."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Float[Tensor, "batch channels frames 1"]) -> Tensor:
        """Return the same values."""
        blocks: Tensor = x.permute(0, 2, 3, 1).flatten(2).unflatten(2, (self.blocks, -1))
        return blocks.permute(0, 3, 1, 2)


class Residual(nn.Module):
    """A block's layers beside its input."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Float[Tensor, "batch channels frames mels"]) -> Tensor:
        """Return the sum."""
        out: Tensor = self.layers(x)
        return out + x


class DeployedMicroNet(nn.Module):
    """What :func:`deploy_form` returns."""

    def __init__(self, features: nn.Sequential, order: Order, embedding: nn.Module) -> None:
        super().__init__()
        self.features = features
        if isinstance(embedding, nn.Linear):
            linear = nn.Linear(embedding.in_features, embedding.out_features)
            with torch.no_grad():
                linear.weight.copy_(embedding.weight[:, order.channel])
                linear.bias.copy_(embedding.bias)
            self.embedding: nn.Module = linear
        else:
            self.embedding = Reordered(order)

    def forward(self, log_mel: Float[Tensor, "batch 1 mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding."""
        maps: Tensor = nn.functional.relu6(self.features(log_mel))
        out: Tensor = self.embedding(nn.functional.hardswish(maps.mean(dim=(2, 3))))
        return out


class Reordered(nn.Module):
    """Channels back in the student's order."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        self.register_buffer("index", order.channel.argsort())
        self.index: Tensor

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return the same values."""
        return x.index_select(1, self.index)


def _a(kind: type[Layer], module: object) -> Layer:
    """Return ``module``, which is a ``kind``."""
    assert isinstance(module, kind)
    return module


@dataclass
class _Builder:
    """What is built so far: the layers, the last activation's order, and what its values are multiplied by."""

    layers: list[nn.Module]
    order: Order
    mels: int
    gain: float = 1.0

    def weights(self, conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """Return a layer's folded weights, for the values as they are here."""
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        weight, bias = folded_batch_norm(conv, norm)
        weight, self.gain = weight * self.gain, 1.0
        return weight, bias

    def point(self, layer: GroupConv, after: Order) -> None:
        """Add a pointwise convolution."""
        weight, bias = self.weights(layer.conv[0], layer.conv[1])
        groups = _a(nn.Conv2d, layer.conv[0]).groups
        self.layers.append(time_conv(weight, bias, groups=groups, stride=1, before=self.order, after=after))
        self.order = after

    def separable(self, layer: SeparableConv, after: Order | None) -> None:
        """Add both halves of a micro-factorised convolution; ``after`` None keeps a depthwise one's order."""
        over_mels, over_time = _a(nn.Conv2d, layer.conv[0]), _a(nn.Conv2d, layer.conv[2])
        weight, bias = self.weights(over_mels, layer.conv[1])
        strides = int(over_mels.stride[0]), int(over_time.stride[1])
        self.mels = -(-self.mels // strides[0])
        if after is None:
            self.layers.append(depthwise(weight, bias, over_mels=True, stride=strides[0], order=self.order))
            weight, bias = self.weights(over_time, layer.conv[3])
            self.layers.append(depthwise(weight, bias, over_mels=False, stride=strides[1], order=self.order))
            return
        middle = Order.of(torch.arange(over_mels.out_channels), after.fold)
        self.layers.append(
            mel_conv(
                weight, bias, groups=over_mels.groups, stride=strides[0], before=self.order, after=middle
            )
        )
        weight, bias = self.weights(over_time, layer.conv[3])
        self.layers.append(
            time_conv(weight, bias, groups=over_time.groups, stride=strides[1], before=middle, after=after)
        )
        self.order = after

    def stem(self, stem: Stem, halved: int, fold: int, mean: float, std: float) -> None:
        """Add the stem: over all mels at once, where the normalisation needs no padding, then over frames."""
        separable = _a(SeparableConv, stem.stem[0])
        over_mels, over_time = _a(nn.Conv2d, separable.conv[0]), _a(nn.Conv2d, separable.conv[2])
        shuffle = _a(ChannelShuffle, separable.conv[4])
        weight, bias = self.weights(over_mels, separable.conv[1])
        middle = Order.of(torch.arange(over_mels.out_channels), halved)
        conv = _a(
            nn.Conv2d,
            mel_conv(weight, bias, groups=1, stride=2, before=self.order, after=middle, one_block=True),
        )
        assert conv.bias is not None
        with torch.no_grad():
            whole = conv.weight.double() / std
            conv.bias.copy_(conv.bias.double() - mean * whole.sum(dim=(1, 2, 3)))
            conv.weight.copy_(whole)
        self.layers += [conv, Blocks(halved // fold)]
        weight, bias = self.weights(over_time, separable.conv[3])
        before, after = Order.of(torch.arange(over_mels.out_channels), fold), Order.of(shuffle.order, fold)
        groups = over_time.groups
        self.layers.append(time_conv(weight, bias, groups=groups, stride=2, before=before, after=after))
        self.order = after.shuffled(shuffle.order)
        self.layers.append(nn.ReLU6())

    def activation(self, layer: nn.Module, *, quartered: bool = True) -> None:
        """Add what follows a convolution: nothing, ReLU6, a shuffle, or dynamic shift-max."""
        if isinstance(layer, DynamicShiftMax):
            self.layers.append(
                DeployedShiftMax(layer, self.order, blocks=self.mels // self.order.fold, quartered=quartered)
            )
            self.gain = COEFFICIENT_RANGE if quartered else 1.0
        elif isinstance(layer, nn.ReLU6):
            self.layers.append(nn.ReLU6())
        elif isinstance(layer, ChannelShuffle):
            self.order = self.order.shuffled(layer.order)

    def block(self, block: MicroBlock, *, quartered: bool) -> None:
        """Add one Micro-Block; ``quartered``: whether its output may be a quarter of the trained one's."""
        layers, around, entry = list(block.layers), self.layers, self.order
        if block.residual:
            self.layers = []
        if isinstance(layers[0], SeparableConv):
            separable, inner, shuffle, _, *end = layers
            widening = _a(SeparableConv, separable)
            self.separable(widening, _after_widening(widening, inner, shuffle, self.order.fold))
            self.activation(inner)
            self.activation(shuffle)
        else:
            expand, inner, *end = layers
            conv = _a(nn.Conv2d, _a(GroupConv, expand).conv[0])
            self.point(_a(GroupConv, expand), grouped_order(conv.groups, conv.out_channels))
            self.activation(inner, quartered=quartered or len(end) > 0)
            if end:
                shuffle, separable, _, inner, middle, *end = end
                self.activation(shuffle)
                self.separable(_a(SeparableConv, separable), None)
                self.activation(inner)
                self.activation(middle)
        if end:
            squeeze, outer, shuffle = end
            self.point(
                _a(GroupConv, squeeze),
                _after_squeeze(outer, shuffle, entry if block.residual else None, self.order.fold),
            )
            self.activation(outer, quartered=quartered)
            self.activation(shuffle)
        if block.residual:
            around.append(Residual(nn.Sequential(*self.layers)))
            self.layers = around


def _after_widening(separable: SeparableConv, inner: nn.Module, shuffle: nn.Module, fold: int) -> Order:
    fold = max(1, fold // _mel_stride(separable))
    if isinstance(inner, DynamicShiftMax):
        return shift_order(inner.index, fold)
    return Order.of(_a(ChannelShuffle, shuffle).order, fold)


def _mel_stride(separable: SeparableConv) -> int:
    return int(_a(nn.Conv2d, separable.conv[0]).stride[0])


def _after_squeeze(outer: nn.Module, shuffle: nn.Module, entry: Order | None, fold: int) -> Order:
    """Return the order of a block's output: its input's where there is a residual, else what comes next likes."""
    after = _a(ChannelShuffle, shuffle).order
    if entry is not None:
        return Order(entry.mel, after[entry.channel], entry.fold)
    if isinstance(outer, DynamicShiftMax):
        return shift_order(outer.index, fold)
    return Order.of(after, fold)


def deploy_form(student: MicroNet, mels: int, mean: float, std: float) -> nn.Module:
    """Return the network that gives ``student``'s embedding for a raw log-mel ``(batch, 1, mels, frames)``.

    Args:
        student: trained; its batch norms' running statistics are used.
        mels: of the input, fixed from here on; frames and batch stay free.
        mean, std: of the training rows, as in ``NormalisedStudent``.
    """
    stem, blocks = _parts(student)
    halved = -(-mels // 2)
    built = _Builder([MelsAsChannels()], Order.of(torch.arange(1), mels), halved)
    fold = _first_fold(student, halved)
    built.stem(stem, halved, fold, mean, std)
    for number, block in enumerate(blocks):
        # The clip at 6 and a sum with a quarter would be other functions.
        quartered = number + 1 < len(blocks) and not block.residual and not blocks[number + 1].residual
        built.block(block, quartered=quartered)
    return DeployedMicroNet(nn.Sequential(*built.layers), built.order, student.embedding).eval()


def _parts(student: MicroNet) -> tuple[Stem, list[MicroBlock]]:
    stem, *blocks = student.features
    return _a(Stem, stem), [_a(MicroBlock, block) for block in blocks]


def _first_fold(student: MicroNet, mels: int) -> int:
    """Return how many mels of the stem's maps are channels: the strided widening blocks take half of them each."""
    stem, blocks = _parts(student)
    first = [block.layers[0] for block in blocks]
    halvings = sum(isinstance(layer, SeparableConv) and _mel_stride(layer) == 2 for layer in first)
    channels = len(_a(ChannelShuffle, _a(SeparableConv, stem.stem[0]).conv[4]).order)
    fold = 1
    while fold < 2**halvings and 2 * fold * channels <= FOLDED_CHANNELS and mels % (2 * fold) == 0:
        fold *= 2
    return fold
