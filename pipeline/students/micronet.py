"""MicroNet M0-M3: micro-factorised convolutions, dynamic shift-max (Li et al., ICCV 2021, arXiv 2108.05894).

Published names and numerics: a checkpoint of the authors loads as it is, given ``in_channels=3`` and
``num_classes=1000``.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.config import StudentConfig
from pipeline.students.base import Student
from pipeline.students.micronet_variants import M0, M1, M2, M3, MicroNetConfig, Row, scaled

# Coefficients are (hard sigmoid - 1/2) * 4: the published maximum 2, twice.
COEFFICIENT_RANGE = 4.0
REDUCTION = 8


class ChannelShuffle(nn.Module):
    """Interleave channel groups: channels read as (g, n) and written as (n, g), for each g of ``groups``.

    One gather instead of reshape, transpose, reshape for each, so that an exported graph has one node.
    """

    def __init__(self, channels: int, *groups: int) -> None:
        super().__init__()
        order = torch.arange(channels)
        for group in groups:
            order = order.view(group, -1).T.flatten()
        self.register_buffer("order", order, persistent=False)
        self.order: Tensor

    def forward(
        self, x: Float[Tensor, "batch channels mels frames"]
    ) -> Float[Tensor, "batch channels mels frames"]:
        return torch.index_select(x, 1, self.order)


class DynamicShiftMax(nn.Module):
    """Dynamic shift-max: max over branches k of ``a_k(x) * x + b_k(x) * shifted x`` (Li et al., 2021).

    The coefficients come from the globally averaged input through two linear layers; the shift takes every
    channel's partner from the next group and one further within it. With one branch there is no maximum.

    Args:
        channels: of input and output.
        groups: channel groups of the shift.
        reduction: channels over hidden units of the coefficients' network, rounded to 4.
        branches: 1 or 2.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        reduction: int,
        branches: int,
        init_a: tuple[float, float],
        init_b: tuple[float, float],
    ) -> None:
        super().__init__()
        self.branches, self.init_a, self.init_b = branches, init_a, init_b
        hidden = _squeeze_channels(channels // reduction)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, 2 * branches * channels),
            nn.Hardsigmoid(),
        )
        index = torch.arange(channels).view(groups, -1).roll((-1, -1), dims=(0, 1)).flatten()
        self.register_buffer("index", index, persistent=False)
        self.index: Tensor

    def forward(
        self, x: Float[Tensor, "batch channels mels frames"]
    ) -> Float[Tensor, "batch channels mels frames"]:
        coefficients = (self.fc(x.mean(dim=(2, 3))) - 0.5) * COEFFICIENT_RANGE
        parts = coefficients[:, :, None, None].chunk(2 * self.branches, dim=1)
        shifted = x.index_select(1, self.index)
        out: Tensor = x * (parts[0] + self.init_a[0]) + shifted * (parts[1] + self.init_b[0])
        if self.branches == 2:
            second = x * (parts[2] + self.init_a[1]) + shifted * (parts[3] + self.init_b[1])
            out = torch.maximum(out, second)
        return out


def _squeeze_channels(channels: int) -> int:
    # The MobileNet rule: nearest multiple of 4, at least 4, never more than a tenth below.
    rounded = max(4, (channels + 2) // 4 * 4)
    return rounded + 4 if rounded < 0.9 * channels else rounded


class SeparableConv(nn.Module):
    """A k x k convolution as k x 1 then 1 x k, each with batch norm and no activation (micro-factorised).

    Args:
        channels: input channels.
        widths: output channels of both; the second has one group for each channel of the first.
        first_groups: groups of the first; ``channels`` makes it depthwise, 1 makes it the stem's.
        shuffle: end with a channel shuffle over the first's outputs (the stem's).
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, int],
        kernel: int,
        stride: int,
        first_groups: int,
        shuffle: bool = False,
    ) -> None:
        super().__init__()
        first, second = widths
        half = kernel // 2
        self.conv = nn.Sequential(
            nn.Conv2d(channels, first, (kernel, 1), (stride, 1), (half, 0), groups=first_groups, bias=False),
            nn.BatchNorm2d(first),
            nn.Conv2d(first, second, (1, kernel), (1, stride), (0, half), groups=first, bias=False),
            nn.BatchNorm2d(second),
        )
        if shuffle:
            self.conv.append(ChannelShuffle(second, first))

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, widths[1], ceil(mels / stride), ceil(frames / stride))``."""
        out: Tensor = self.conv(x)
        return out


class GroupConv(nn.Module):
    """Grouped 1x1 convolution and batch norm."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, out_channels, 1, groups=groups, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, out_channels, mels, frames)``."""
        out: Tensor = self.conv(x)
        return out


class MicroBlock(nn.Module):
    """One row of a block table: Micro-Block A, B or C of the paper by which of its convolutions it has."""

    def __init__(self, channels: int, row: Row, config: MicroNetConfig) -> None:
        super().__init__()
        self.residual = row.stride == 1 and channels == row.channels
        hidden = channels * row.expand_height * row.expand_width
        reduction = REDUCTION * row.reduction_ratio

        def inner(branches: int, groups: int) -> nn.Module:
            if branches == 0:
                return nn.ReLU6(inplace=True)
            return DynamicShiftMax(hidden, groups, reduction, branches, config.init_a, config.init_b)

        def outer(width: int, groups: int, ratio: int) -> nn.Module:
            if row.output_branches == 0:
                return nn.Identity()
            return DynamicShiftMax(width, groups, ratio, 1, (1.0, 0.0), (0.0, 0.0))

        def output_shuffle() -> nn.Module:
            pairs = (row.channels // 2,) if row.output_branches else ()
            return ChannelShuffle(row.channels, row.output_groups, *pairs)

        # nn.Identity keeps the published positions where two consecutive shuffles became one gather.
        if row.expand_groups == 0:
            widths = (channels * row.expand_height, hidden)
            pairs = (hidden // 2,) if row.depthwise_branches else ()
            layers = [
                SeparableConv(channels, widths, row.kernel, row.stride, channels),
                inner(row.depthwise_branches, row.shift_groups),
                ChannelShuffle(hidden, row.shift_groups, *pairs),
                nn.Identity(),
                GroupConv(hidden, row.channels, row.squeeze_groups),
                outer(row.channels, row.output_groups, reduction // 2),
                output_shuffle(),
            ]
        elif row.output_groups == 0:
            layers = [
                GroupConv(channels, hidden, row.expand_groups),
                outer(hidden, row.shift_groups, reduction),
            ]
        else:
            layers = [
                GroupConv(channels, hidden, row.expand_groups),
                inner(row.expand_branches, row.shift_groups),
                ChannelShuffle(hidden, row.shift_groups),
                SeparableConv(hidden, (hidden, hidden), row.kernel, row.stride, hidden),
                nn.Identity(),
                inner(row.depthwise_branches, hidden // row.shift_groups),
                _middle_shuffle(hidden, row),
                GroupConv(hidden, row.channels, row.squeeze_groups),
                outer(
                    row.channels, row.output_groups, reduction // 2 if row.channels < hidden else reduction
                ),
                output_shuffle(),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, row.channels, ceil(mels / stride), ceil(frames / stride))``."""
        out: Tensor = self.layers(x)
        return out + x if self.residual else out


def _middle_shuffle(hidden: int, row: Row) -> nn.Module:
    dynamic = (row.expand_branches > 0) + (row.depthwise_branches > 0)
    return [nn.Identity(), ChannelShuffle(hidden, hidden // 2), ChannelShuffle(hidden, hidden // 4)][dynamic]


class Stem(nn.Module):
    """3x1 then grouped 1x3 convolution with stride 2, channel shuffle, ReLU6."""

    def __init__(self, in_channels: int, groups: tuple[int, int]) -> None:
        super().__init__()
        outer, inner = groups
        self.stem = nn.Sequential(
            SeparableConv(in_channels, (outer, outer * inner), 3, 2, 1, shuffle=True), nn.ReLU6(inplace=True)
        )

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, outer * inner, ceil(mels / 2), ceil(frames / 2))``."""
        out: Tensor = self.stem(x)
        return out


class HardSwishLinear(nn.Module):
    """Linear, batch norm and hard swish: the published classifier's layer, its last one included."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Sequential(
            nn.Linear(channels, out_channels), nn.BatchNorm1d(out_channels), nn.Hardswish()
        )

    def forward(self, x: Float[Tensor, "batch channels"]) -> Tensor:
        """Return ``(batch, out_channels)``."""
        out: Tensor = self.linear(x)
        return out


class MicroNet(Student):
    """MicroNet of Li et al. (ICCV 2021) with its published pooling: ReLU6, global mean, hard swish.

    Args:
        config: :data:`M0` to :data:`M3`.
        width: multiplies every channel count; see :func:`scaled`.
        embedding_dim: width of the embedding; default 4 or 6 times the last block's input.
        in_channels: 1 for log-mel, 3 for the published weights.
        num_classes: 0 gives the embedding; more adds the published classifier, whose output has passed batch
            norm and hard swish (so training it needs a batch of at least 2).

    Input ``(batch, in_channels, mels, frames)``, any size from 1 x 1.
    """

    not_causal = None

    def __init__(
        self,
        config: MicroNetConfig = M0,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        in_channels: int = 1,
        num_classes: int = 0,
    ) -> None:
        config = scaled(config, width)
        super().__init__(config.rows[-1].channels, embedding_dim)
        blocks: list[nn.Module] = [Stem(in_channels, config.stem_groups)]
        channels = math.prod(config.stem_groups)
        for row in config.rows:
            blocks.append(MicroBlock(channels, row, config))
            channels = row.channels
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.Sequential(nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Hardswish())
        self.classifier: nn.Module | None = None
        if num_classes:
            self.classifier = nn.Sequential(
                HardSwishLinear(self.embedding_dim, config.classifier_channels),
                nn.Dropout(config.dropout),
                HardSwishLinear(config.classifier_channels, num_classes),
            )
        self._initialise()

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the classifier's output where there is one."""
        out: Tensor = self.embedding(self.avgpool(self.features(log_mel)).flatten(1))
        if self.classifier is not None:
            out = self.classifier(out)
        return out.float()

    def deploy_form(self, mels: int, mean: float, std: float) -> nn.Module | None:
        """Return the network of :mod:`~.micronet_deploy`; a causal one or one with classes has none."""
        from pipeline.students.micronet_deploy import deploy_form  # it needs this module

        if self.causal is not None or self.classifier is not None:
            return None
        return deploy_form(self, mels, mean, std)

    def _initialise(self) -> None:
        """Draw the published initialisation: convolutions by fan-out, linear layers with deviation 0.01."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                outputs = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / outputs))
            elif isinstance(module, nn.Linear) and module is not self.embedding:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)


def build_m0(config: StudentConfig, mels: int) -> MicroNet:
    """Return MicroNet M0 (129K parameters at width 1); any number of mels."""
    return MicroNet(M0, width=config.width, embedding_dim=config.embedding_dim)


def build_m1(config: StudentConfig, mels: int) -> MicroNet:
    """Return MicroNet M1 (259K parameters at width 1); any number of mels."""
    return MicroNet(M1, width=config.width, embedding_dim=config.embedding_dim)


def build_m2(config: StudentConfig, mels: int) -> MicroNet:
    """Return MicroNet M2 (577K parameters at width 1); any number of mels."""
    return MicroNet(M2, width=config.width, embedding_dim=config.embedding_dim)


def build_m3(config: StudentConfig, mels: int) -> MicroNet:
    """Return MicroNet M3 (708K parameters at width 1); any number of mels."""
    return MicroNet(M3, width=config.width, embedding_dim=config.embedding_dim)
