"""CP-Mobile: inverted bottlenecks with global response normalisation, for acoustic scenes on small devices.

Schmid, Morocutti, Masoudian, Koutini, Widmer, "Distilling the Knowledge of Transformers and CNNs with
CP-Mobile", DCASE Workshop 2023. Published names and numerics: a checkpoint of the authors loads as it is,
given ``num_classes``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.config import StudentConfig
from pipeline.students.base import Student, make_divisible, round_channels
from pipeline.students.pooling import MeanPool

CHANNEL_DIVISOR = 8
SCALED_DIVISOR = 2


@dataclass(frozen=True)
class CpMobileConfig:
    """A member of the family.

    Attributes:
        channels: output channels of the three stages.
        expansion: hidden over input channels of a block.
        strides: (mel, time) stride of the blocks that have one, by the block's number from 1.
        blocks: blocks of each stage.
        response_norm: global response normalisation after every block.
    """

    channels: tuple[int, int, int]
    expansion: float
    strides: tuple[tuple[int, tuple[int, int]], ...] = ((2, (2, 2)), (4, (2, 1)))
    blocks: tuple[int, int, int] = (3, 2, 1)
    response_norm: bool = True


# Stage s has make_divisible(base * multiplier ** s, 8) channels: 8 * 1.9, 16 * 1.5, 24 * 1.5, 32 * 2.3.
CP_MOBILE_6K = CpMobileConfig((8, 16, 32), 2.0)
CP_MOBILE_12K = CpMobileConfig((16, 24, 40), 1.8)
CP_MOBILE_30K = CpMobileConfig((24, 40, 56), 2.0)
CP_MOBILE_128K = CpMobileConfig((32, 72, 168), 3.0)


class GlobalResponseNorm(nn.Module):
    """``gamma * x * n + beta + x`` with ``n`` = the channel's L2 norm over mel and time / the channels' mean norm.

    Woo et al., ConvNeXt V2, CVPR 2023; here with one gamma and one beta for all channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Float[Tensor, "batch channels mels frames"]
    ) -> Float[Tensor, "batch channels mels frames"]:
        """Return the normalised map; the norms are taken in float32."""
        norm = torch.linalg.vector_norm(x.float(), dim=(2, 3), keepdim=True)
        share = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
        gain: Tensor = (self.gamma * share + 1.0).to(x.dtype)
        return gain * x + self.beta.to(x.dtype)


def conv_norm(
    channels: int,
    out_channels: int,
    kernel: int,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    relu: bool = True,
) -> nn.Sequential:
    """Return a convolution padded by half its kernel, batch norm and, if asked, ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class CpMobileBlock(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; shortcut where the width stays, averaged where strided."""

    def __init__(
        self, channels: int, hidden: int, out_channels: int, stride: tuple[int, int], response_norm: bool
    ) -> None:
        super().__init__()
        self.after_block_norm = GlobalResponseNorm() if response_norm else nn.Identity()
        self.residual = channels == out_channels
        self.shortcut: nn.Module = nn.Identity()
        if self.residual and stride != (1, 1):
            self.shortcut = nn.AvgPool2d(3, stride, padding=1)
        self.block = nn.Sequential(
            conv_norm(channels, hidden, 1),
            conv_norm(hidden, hidden, 3, stride, groups=hidden),
            conv_norm(hidden, out_channels, 1, relu=False),
        )

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, out_channels, ceil(mels / stride), ceil(frames / stride))``."""
        out: Tensor = self.block(x)
        if self.residual:
            out = out + self.shortcut(x)
        return self.after_block_norm(out).relu_()  # type: ignore[no-any-return]


class CpMobile(Student):
    """CP-Mobile, and with ``response_norm`` off the DCASE 2024 baseline.

    Args:
        config: :data:`CP_MOBILE_6K` to :data:`CP_MOBILE_128K`.
        width: multiplies the three stages' channels; at 1 hidden channels are the published multiples of 8.
        embedding_dim: width of the embedding; default the last stage's channels.
        in_channels: 1 for log-mel.
        num_classes: 0 gives the embedding, the mean of the last maps; more adds the published classifier
            (1x1 convolution and batch norm on the maps, then the mean).

    Input ``(batch, in_channels, mels, frames)``, any size from 1 x 1.
    """

    not_causal = None

    def __init__(
        self,
        config: CpMobileConfig = CP_MOBILE_128K,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        in_channels: int = 1,
        num_classes: int = 0,
    ) -> None:
        divisor = CHANNEL_DIVISOR if width == 1.0 else SCALED_DIVISOR
        widths = [c if width == 1.0 else round_channels(width * c, divisor) for c in config.channels]
        super().__init__(widths[-1], embedding_dim)
        self.in_c = nn.Sequential(
            conv_norm(in_channels, max(1, widths[0] // 4), 3, 2),
            conv_norm(max(1, widths[0] // 4), widths[0], 3, 2),
        )
        strides = dict(config.strides)
        self.stages = nn.Sequential()
        channels, number = widths[0], 0
        for stage, (out_channels, blocks) in enumerate(zip(widths, config.blocks, strict=True), start=1):
            layers = nn.Sequential()
            for _ in range(blocks):
                number += 1
                hidden = make_divisible(channels * config.expansion, divisor)
                layers.add_module(
                    f"b{number}",
                    CpMobileBlock(
                        channels, hidden, out_channels, strides.get(number, (1, 1)), config.response_norm
                    ),
                )
                channels = out_channels
            self.stages.add_module(f"s{stage}", layers)
        self.pool = MeanPool()
        self.feed_forward: nn.Sequential | None = None
        if num_classes:
            self.feed_forward = conv_norm(channels, num_classes, 1, relu=False)
        initialise(self)

    def maps(
        self, log_mel: Float[Tensor, "batch channels mels frames"]
    ) -> Float[Tensor, "batch dim mel time"]:
        """Return the last block's maps."""
        return self.stages(self.in_c(log_mel))  # type: ignore[no-any-return]

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the logits where there is a classifier."""
        maps = self.maps(log_mel)
        if self.feed_forward is not None:
            return self.logits(maps)
        return self.embedding(self.pool(maps)).float()  # type: ignore[no-any-return]

    def logits(self, maps: Float[Tensor, "batch dim mel time"]) -> Float[Tensor, "batch classes"]:
        """Return the classifier's output for the last maps; asked of a network with classes only."""
        assert self.feed_forward is not None
        return self.feed_forward(maps).float().mean(dim=(2, 3))  # type: ignore[no-any-return]


def initialise(student: Student) -> None:
    """Draw convolutions by fan-out (He et al., 2015) and the classifier's linear layer with deviation 0.01."""
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear) and module is not student.embedding:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def build_6k(config: StudentConfig, mels: int) -> CpMobile:
    """Return CP-Mobile with 5.8K parameters besides its classifier (6K with ten classes)."""
    return CpMobile(CP_MOBILE_6K, width=config.width, embedding_dim=config.embedding_dim)


def build_12k(config: StudentConfig, mels: int) -> CpMobile:
    """Return CP-Mobile with 12K parameters; any number of mels."""
    return CpMobile(CP_MOBILE_12K, width=config.width, embedding_dim=config.embedding_dim)


def build_30k(config: StudentConfig, mels: int) -> CpMobile:
    """Return CP-Mobile with 30K parameters; any number of mels."""
    return CpMobile(CP_MOBILE_30K, width=config.width, embedding_dim=config.embedding_dim)


def build_128k(config: StudentConfig, mels: int) -> CpMobile:
    """Return CP-Mobile with 125K parameters (127K with ten classes); any number of mels."""
    return CpMobile(CP_MOBILE_128K, width=config.width, embedding_dim=config.embedding_dim)
