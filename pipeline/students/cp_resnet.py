"""CP-ResNet: residual networks whose receptive field is held small by 1x1 kernels.

Koutini, Eghbal-zadeh, Widmer, "Receptive Field Regularization Techniques for Audio Classification and
Tagging with Deep Convolutional Neural Networks", IEEE/ACM TASLP 2021. The 128K network is the teacher of
Schmid et al. (DCASE 2023); the 5.5M one is the student of Ding and Lerch (EAsT, ISMIR 2023). Published names
and numerics: a checkpoint of the authors loads as it is, given ``num_classes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.config import StudentConfig
from pipeline.students.base import Student, round_channels
from pipeline.students.cp_mobile import initialise
from pipeline.students.pooling import MeanPool

CHANNEL_DIVISOR = 2
STEM_KERNEL = 5
Kernels = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CpResNetConfig:
    """A member of the family.

    Attributes:
        channels: of the stem and stage 1, of stage 2, of stage 3.
        kernels: of each stage, the two convolutions' sizes of every block: rho, spelt out.
        pools: (after block, mel, time): maximum pooling of stage 1; 0 is before the first block.
        groups: of each stage's convolutions.
        stem_padding: of the 5x5 stem with stride 2.
        classifier: ``maps`` = 1x1 convolution and batch norm, then the mean; ``linear`` = on the mean.
    """

    channels: tuple[int, int, int]
    kernels: tuple[Kernels, Kernels, Kernels]
    pools: tuple[tuple[int, int, int], ...]
    groups: tuple[int, int, int] = (1, 1, 1)
    stem_padding: int = 1
    classifier: Literal["maps", "linear"] = "maps"


# rho 8 of the authors' depth rule; the last stage's width is cut from 128 to 92.
CP_RESNET_128K = CpResNetConfig(
    channels=(32, 64, 92),
    kernels=(((3, 1), (3, 3)), ((3, 3),), ((3, 1),)),
    pools=((0, 2, 2), (1, 2, 1), (2, 2, 1)),
    groups=(1, 2, 1),
)
# rho 7
CP_RESNET_EAST = CpResNetConfig(
    channels=(128, 256, 512),
    kernels=(((3, 1), (3, 3), (3, 3), (3, 3)), ((3, 1), (1, 3), (1, 3), (1, 3)), ((1, 1),) * 4),
    pools=((1, 2, 2), (2, 2, 2), (4, 2, 2)),
    stem_padding=2,
    classifier="linear",
)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm, a projected shortcut where the width changes, then ReLU."""

    def __init__(self, channels: int, out_channels: int, kernels: tuple[int, int], groups: int) -> None:
        super().__init__()
        first, second = kernels
        self.conv1 = nn.Conv2d(channels, out_channels, first, padding=first // 3, groups=groups, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(
            out_channels, out_channels, second, padding=second // 3, groups=groups, bias=False
        )
        self.bn2: nn.Module = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if channels != out_channels:
            self.shortcut.add_module("conv", nn.Conv2d(channels, out_channels, 1, groups=groups, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(out_channels))

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, out_channels, mels, frames)``."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        return (out + self.shortcut(x)).relu_()  # type: ignore[no-any-return]

    def fold(self) -> None:
        """Fold the main path's batch norms into their convolutions: for inference, once, after loading."""
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
            setattr(self, conv, fuse_conv_bn_eval(getattr(self, conv), getattr(self, norm)))
            setattr(self, norm, nn.Identity())


class CpResNet(Student):
    """CP-ResNet.

    Args:
        config: :data:`CP_RESNET_128K` or :data:`CP_RESNET_EAST`.
        width: multiplies every channel count, rounded to a multiple of 2.
        embedding_dim: width of the embedding; default the last stage's channels.
        in_channels: 1 for log-mel.
        num_classes: 0 gives the embedding, the mean of the last maps; more adds the published classifier.

    Input ``(batch, in_channels, mels, frames)``, any size from 1 x 1: what the stem and the pools would
    leave nothing of is followed by zeros (the 128K network: below 17 mels or 5 frames).
    """

    not_causal = None

    def __init__(
        self,
        config: CpResNetConfig = CP_RESNET_128K,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        in_channels: int = 1,
        num_classes: int = 0,
    ) -> None:
        widths = [round_channels(width * c, CHANNEL_DIVISOR) for c in config.channels]
        super().__init__(widths[-1], embedding_dim)
        self.least_mels, self.least_frames = _least(config)
        self.in_c = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], STEM_KERNEL, 2, config.stem_padding, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.stage1 = _stage(widths[0], widths[0], config, 0)
        self.stage2 = _stage(widths[0], widths[1], config, 1)
        self.stage3 = _stage(widths[1], widths[2], config, 2)
        self.pool = MeanPool()
        self.feed_forward: nn.Module | None = None
        self.linear_classifier = config.classifier == "linear"
        if num_classes and self.linear_classifier:
            self.feed_forward = nn.Linear(widths[2], num_classes)
        elif num_classes:
            self.feed_forward = nn.Sequential(
                nn.Conv2d(widths[2], num_classes, 1, bias=False), nn.BatchNorm2d(num_classes)
            )
        initialise(self)

    def maps(
        self, log_mel: Float[Tensor, "batch channels mels frames"]
    ) -> Float[Tensor, "batch dim mel time"]:
        """Return the last block's maps."""
        x = self.in_c(self._long_enough(log_mel))
        return self.stage3(self.stage2(self.stage1(x)))  # type: ignore[no-any-return]

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the logits where there is a classifier."""
        maps = self.maps(log_mel)
        if self.feed_forward is not None:
            return self.logits(maps)
        return self.embedding(self.pool(maps)).float()  # type: ignore[no-any-return]

    def logits(self, maps: Float[Tensor, "batch dim mel time"]) -> Float[Tensor, "batch classes"]:
        """Return the classifier's output for the last maps; asked of a network with classes only."""
        assert self.feed_forward is not None
        if self.linear_classifier:
            mean = maps.float().mean(dim=(2, 3)).to(next(self.feed_forward.parameters()).dtype)
            return self.feed_forward(mean).float()  # type: ignore[no-any-return]
        return self.feed_forward(maps).float().mean(dim=(2, 3))  # type: ignore[no-any-return]

    def at_any_length(self) -> None:
        """Follow no short input by zeros: looking back, the stem and the pools leave a step of any block."""
        self.least_frames = 1

    def _long_enough(self, x: Tensor) -> Tensor:
        mels, frames = x.shape[2], x.shape[3]
        # In a traced graph the number of frames is symbolic, so the padding is an expression, never a branch.
        more = torch.sym_max(0, self.least_frames - frames)
        return F.pad(x, (0, more, 0, max(0, self.least_mels - mels)))


def _least(config: CpResNetConfig) -> tuple[int, int]:
    """Return the fewest mels and frames that leave one cell after the pools."""
    least = []
    for axis in (1, 2):
        cells = 1
        for pool in config.pools:
            cells *= pool[axis]
        least.append(max(1, (cells - 1) * 2 + STEM_KERNEL - 2 * config.stem_padding))
    return least[0], least[1]


def _stage(channels: int, out_channels: int, config: CpResNetConfig, index: int) -> nn.Sequential:
    layers = nn.Sequential()
    pools = {after: (mel, time) for after, mel, time in config.pools} if index == 0 else {}
    if 0 in pools:
        layers.add_module("maxpool0", nn.MaxPool2d(pools[0]))
    for number, kernels in enumerate(config.kernels[index], start=1):
        layers.add_module(
            f"block{number}", ResidualBlock(channels, out_channels, kernels, config.groups[index])
        )
        channels = out_channels
        if number in pools:
            layers.add_module(f"maxpool{number}", nn.MaxPool2d(pools[number]))
    return layers


def build_cp_resnet(config: StudentConfig, mels: int) -> CpResNet:
    """Return the 128K network of Schmid et al. (127K parameters at width 1); any number of mels."""
    return CpResNet(CP_RESNET_128K, width=config.width, embedding_dim=config.embedding_dim)


def build_cp_resnet_east(config: StudentConfig, mels: int) -> CpResNet:
    """Return the student of EAsT (5.5M parameters at width 1); any number of mels."""
    return CpResNet(CP_RESNET_EAST, width=config.width, embedding_dim=config.embedding_dim)
