"""SF-NFNet-F0: a slow and a fast path without batch norms (Wang et al., ICASSP 2022; McCallum et al., ISMIR 2022)."""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDING_DIM = 1728
# Keeps the variance of a standard normal through GELU (Brock et al., ICML 2021).
GELU_GAIN = 1.7015043497085571
ALPHA = 0.2
VARIANCE_FLOOR = 1e-4

STAGE_BLOCKS = (1, 2, 6, 3)
FREQUENCY_STRIDES = (1, 2, 2, 2)
FUSION_STRIDE = 4

Size = tuple[int, int]


class WeightStandardisedConv(nn.Module):
    """A convolution whose kernels are standardised, then scaled by a learnt gain (Brock et al., ICML 2021).

    Padding is TensorFlow's SAME: the output has ceil(input / stride) positions, odd padding on the far side.

    Example:
        >>> WeightStandardisedConv(1, 2, (3, 3), (2, 2))(torch.zeros(1, 1, 96, 300)).shape
        torch.Size([1, 2, 48, 150])
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: Size, stride: Size = (1, 1), groups: int = 1
    ) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(torch.randn(outputs, inputs // groups, *kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain = nn.Parameter(torch.ones(outputs))
        self.folded = False

    def standardised(self) -> Tensor:
        """Return the kernels of zero mean and variance 1 / fan-in, times the gain."""
        fan_in = math.prod(self.weight.shape[1:])
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = (variance * fan_in).clamp(min=VARIANCE_FLOOR).rsqrt()
        return (self.weight - mean) * scale * self.gain[:, None, None, None]

    @torch.no_grad()
    def fold(self, input_scale: float = 1.0) -> None:
        """Standardise once and for all, for inference; ``input_scale`` times the input is what it will mean."""
        self.weight.copy_(self.standardised() * input_scale)
        self.folded = True

    def forward(self, x: Float[Tensor, "batch inputs mel time"]) -> Tensor:
        """Return (batch, outputs, ceil(mel / stride), ceil(time / stride))."""
        weight = self.weight if self.folded else self.standardised()
        totals = [
            max(0, ((size + stride - 1) // stride - 1) * stride + kernel - size)
            for size, stride, kernel in zip(x.shape[2:], self.stride, weight.shape[2:], strict=True)
        ]
        if any(total % 2 for total in totals):
            high, wide = totals
            x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
            totals = [0, 0]
        padding = [total // 2 for total in totals]
        return F.conv2d(x, weight, self.bias, self.stride, padding, groups=self.groups)


class Stem(nn.Module):
    """Four weight-standardised convolutions, scaled GELU between them."""

    def __init__(
        self, channels: tuple[int, ...], kernels: tuple[Size, ...], strides: tuple[Size, ...]
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            WeightStandardisedConv(inputs, outputs, kernel, stride)
            for inputs, outputs, kernel, stride in zip(
                (1, *channels), channels, kernels, strides, strict=False
            )
        )
        self.gain = GELU_GAIN

    def forward(self, x: Float[Tensor, "batch 1 mel time"]) -> Tensor:
        """Return the last convolution's output."""
        for index, conv in enumerate(self.convs):
            x = conv(x if index == 0 else _scaled(F.gelu(x), self.gain))
        return x

    def fold(self) -> None:
        """Standardise the kernels and fold the activation's gain into them."""
        for index, conv in enumerate(self.convs):
            conv.fold(1.0 if index == 0 else self.gain)  # type: ignore[operator]
        self.gain = 1.0


class SqueezeExcite(nn.Module):
    """Gates of every channel from its mean: linear, ReLU, linear, twice the sigmoid (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 2)
        self.fc2 = nn.Linear(channels // 2, channels)

    def forward(self, x: Float[Tensor, "batch channels mel time"]) -> Float[Tensor, "batch channels 1 1"]:
        """Return the gates, in (0, 2)."""
        gates = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3))))))
        return 2.0 * gates[..., None, None]


class NfBlock(nn.Module):
    """A bottleneck block without normalisation; the first of a stage also carries its skip through a convolution.

    Args:
        beta: 1 / expected deviation of the input.
        stride: over mel, in the first block of a stage.
        transition: whether this is a stage's first block.
        group_size: channels a group of the 1x3 and 3x1 convolutions.
    """

    def __init__(
        self, inputs: int, outputs: int, group_size: int, beta: float, stride: int, transition: bool
    ) -> None:
        super().__init__()
        self.stride, self.beta, self.gain = stride, beta, GELU_GAIN
        inner = outputs // 2
        groups = inner // group_size
        self.skip_gain = nn.Parameter(torch.zeros(1))
        self.convs = nn.ModuleList(
            [
                WeightStandardisedConv(inputs, inner, (1, 1)),
                WeightStandardisedConv(inner, inner, (1, 3), (stride, 1), groups),
                WeightStandardisedConv(inner, inner, (3, 1), (1, 1), groups),
                WeightStandardisedConv(inner, outputs, (1, 1)),
            ]
        )
        self.se = SqueezeExcite(outputs)
        self.skip_conv = WeightStandardisedConv(inputs, outputs, (1, 1)) if transition else None

    def forward(self, x: Float[Tensor, "batch inputs mel time"]) -> Tensor:
        """Return (batch, outputs, ceil(mel / stride), time)."""
        active = _scaled(F.gelu(x), self.gain * self.beta)
        residual = self.convs[0](active)
        for conv in itertools.islice(self.convs, 1, None):
            residual = conv(_scaled(F.gelu(residual), self.gain))
        skip = x
        if self.skip_conv is not None:
            pooled = F.avg_pool2d(active, (self.stride, 1), ceil_mode=True) if self.stride > 1 else active
            skip = self.skip_conv(pooled)
        return torch.addcmul(skip, residual, self.se(residual) * (ALPHA * self.skip_gain))

    def fold(self) -> None:
        """Standardise the kernels and fold beta and the activation's gain into them."""
        for index, conv in enumerate(self.convs):
            conv.fold(self.gain * (self.beta if index == 0 else 1.0))  # type: ignore[operator]
        if self.skip_conv is not None:
            self.skip_conv.fold(self.gain * self.beta)
        self.gain = self.beta = 1.0


class Stage(nn.Module):
    """The blocks of one stage; a block's beta follows from the variance its predecessors add."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int, group_size: int) -> None:
        super().__init__()
        made = []
        for index in range(blocks):
            # The first stage hears the stem's unit variance; from then on every stage starts one block in.
            variance = 1.0 + ALPHA**2 * (index if blocks == STAGE_BLOCKS[0] else index + 1)
            made.append(
                NfBlock(
                    inputs if index == 0 else outputs, outputs, group_size, variance**-0.5,
                    stride if index == 0 else 1, transition=index == 0,
                )
            )  # fmt: skip
        self.blocks = nn.ModuleList(made)

    def forward(self, x: Float[Tensor, "batch inputs mel time"]) -> Tensor:
        """Return the last block's output."""
        for block in self.blocks:
            x = block(x)
        return x


class Fusion(nn.Module):
    """Fast path to slow: a 1x7 convolution of stride 4 over time, a 1x1 convolution, concatenation."""

    def __init__(self, fast: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = WeightStandardisedConv(fast, inner, (1, 7), (1, FUSION_STRIDE))
        self.conv2 = WeightStandardisedConv(inner, outputs, (1, 1))

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        """Return (batch, slow + outputs, mel, time of slow)."""
        return torch.cat([slow, self.conv2(self.conv1(fast))], dim=1)


class SfNfNetF0(nn.Module):
    """The MULE backbone (62.3 M parameters, 4.28 GMAC a slice) under its converted state-dict names."""

    def __init__(self) -> None:
        super().__init__()
        self.slow_stem = Stem(
            (16, 32, 64, 128), ((3, 1), (3, 1), (3, 1), (3, 3)), ((2, 8), (1, 1), (1, 1), (2, 2))
        )
        self.fast_stem = Stem((2, 4, 8, 16), ((3, 3),) * 4, ((2, 2), (1, 1), (1, 1), (2, 2)))
        fast_in, fast_out = (16, 32, 64, 192), (32, 64, 192, 192)
        inner, expanded = (32, 32, 64, 192), (128, 256, 512, 3072)
        self.fusions = nn.ModuleList(map(Fusion, fast_in, inner, expanded))
        slow_in, slow_out = (256, 512, 1024, 4608), (256, 512, 1536, 1536)
        self.slow_stages = nn.ModuleList(
            map(Stage, slow_in, slow_out, STAGE_BLOCKS, FREQUENCY_STRIDES, (128,) * 4)
        )
        self.fast_stages = nn.ModuleList(
            map(Stage, fast_in, fast_out, STAGE_BLOCKS, FREQUENCY_STRIDES, (16,) * 4)
        )

    def stages(self, slices: Float[Tensor, "batch 1 96 300"]) -> list[tuple[Tensor, Tensor]]:
        """Return the slow and the fast path's map after each of the four stages."""
        slow, fast = self.slow_stem(slices), self.fast_stem(slices)
        made = []
        for fusion, slow_stage, fast_stage in zip(
            self.fusions, self.slow_stages, self.fast_stages, strict=True
        ):
            slow, fast = slow_stage(fusion(slow, fast)), fast_stage(fast)
            made.append((slow, fast))
        return made

    @staticmethod
    def embedding(slow: Tensor, fast: Tensor) -> Float[Tensor, "batch 1728"]:
        """Return the scaled GELU of the last maps' means, slow path first."""
        return F.gelu(means(slow, fast)) * GELU_GAIN

    def fold(self) -> None:
        """Standardise every kernel once, with the activations' gains inside: for inference, after loading."""
        for module in self.modules():
            if isinstance(module, Stem | NfBlock):
                module.fold()
            elif isinstance(module, Fusion):
                module.conv1.fold()
                module.conv2.fold()


def means(slow: Tensor, fast: Tensor) -> Tensor:
    """Return both maps' means over mel and time side by side, float32."""
    return torch.cat([path.float().mean(dim=(2, 3)) for path in (slow, fast)], dim=1)


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1.0 else x * scale
