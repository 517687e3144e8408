"""Mobile FCN: five pooled layers and three more of depthwise separable convolutions, a student of EAsT.

Ding and Lerch, "Audio Embeddings as Teachers for Music Classification", ISMIR 2023 (arXiv 2306.17424). Names and
numerics of the authors' code; they published no checkpoint.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import StudentConfig
from pipeline.section import Section
from pipeline.students import options
from pipeline.students.base import Student, round_channels
from pipeline.students.cp_mobile import initialise
from pipeline.students.pooling import MeanPool

# Two plain convolutions, then six separable ones.
CHANNELS = (64, 128, 128, 128, 128, 256, 256, 256)
PLAIN = 2
MEL_POOLS = (2, 2, 2, None, 4)
TIME_POOLS = (4, 3, 2, 2, 2)
CHANNEL_DIVISOR = 4
# The fourth pool leaves the fifth four rows of mel: 3 of 96 and 4 of 128 mels, as published.
ROWS_A_POOL = 32


class MobileFcnOptions(Section):
    """``[student.options]`` of the Mobile FCN."""

    time_pools: tuple[int, int, int, int, int] = Field(
        TIME_POOLS,
        description="pooling in time of the first five layers; the published product of 96 frames wants long clips",
    )


class PlainLayer(nn.Module):
    """3x3 convolution, batch norm, ReLU, maximum pooling."""

    def __init__(self, channels: int, out_channels: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.pool = nn.MaxPool2d(pool)

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, out_channels, mels / pool, frames / pool)``, rounded down."""
        return self.pool(torch.relu(self.bn(self.conv(x))))  # type: ignore[no-any-return]


class SeparableLayer(nn.Module):
    """3x3 depthwise and 1x1 convolution, each with batch norm and ReLU; maximum pooling."""

    def __init__(self, channels: int, out_channels: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.pool: nn.Module = nn.Identity() if pool == (1, 1) else nn.MaxPool2d(pool)

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, out_channels, mels / pool, frames / pool)``, rounded down."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.pool(torch.relu(self.bn2(self.conv2(x))))  # type: ignore[no-any-return]


class MobileFcn(Student):
    """EAsT's Mobile FCN: 314,098 parameters at width 1 with 50 classes, 256 features.

    Args:
        mels: mel bands; they choose the fourth pool over mel, published for 96 and 128.
        width: multiplies every channel count, rounded to a multiple of 4 (at least 4).
        embedding_dim: width of the embedding; default the last layer's channels.
        time_pools: pooling in time of the first five layers.
        in_channels: 1 for log-mel.
        num_classes: 0 gives the embedding, the mean of the last maps; more adds the published classifier.

    Input ``(batch, in_channels, mels, frames)``, any size from 1 x 1: what the pools would leave nothing of is
    followed by zeros (below 96 frames or, for 96 mels, 96 mels).
    """

    not_causal = None

    def __init__(
        self,
        mels: int = 96,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        time_pools: tuple[int, ...] = TIME_POOLS,
        in_channels: int = 1,
        num_classes: int = 0,
    ) -> None:
        widths = [round_channels(width * channels, CHANNEL_DIVISOR) for channels in CHANNELS]
        super().__init__(widths[-1], embedding_dim)
        mel_pools = [pool or max(1, mels // ROWS_A_POOL) for pool in MEL_POOLS]
        pools = [*zip(mel_pools, time_pools, strict=True), *[(1, 1)] * (len(CHANNELS) - len(TIME_POOLS))]
        self.least_mels = self.least_frames = 1
        for mel, time in pools:
            self.least_mels, self.least_frames = self.least_mels * mel, self.least_frames * time
        before = in_channels
        for number, (after, pool) in enumerate(zip(widths, pools, strict=True), start=1):
            layer = PlainLayer if number <= PLAIN else SeparableLayer
            self.add_module(f"layer{number}", layer(before, after, pool))
            before = after
        self.pool = MeanPool()
        self.dense: nn.Module | None = nn.Linear(before, num_classes) if num_classes else None
        initialise(self)

    def maps(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return the last layer's maps ``(batch, dim, mel, time)``."""
        mels, frames = log_mel.shape[2], log_mel.shape[3]
        # In a traced graph the number of frames is symbolic, so the padding is an expression, never a branch.
        more = torch.sym_max(0, self.least_frames - frames)
        x = F.pad(log_mel, (0, more, 0, max(0, self.least_mels - mels)))
        for number in range(1, len(CHANNELS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the class scores before the sigmoid where there is a classifier."""
        pooled = self.pool(self.maps(log_mel))
        out: Tensor = self.embedding(pooled) if self.dense is None else self.dense(pooled)
        return out.float()

    def at_any_length(self) -> None:
        """Follow no short input by zeros: a whole block leaves a step."""
        self.least_frames = 1


@options.takes(MobileFcnOptions)
def build_mobile_fcn(config: StudentConfig, mels: int) -> MobileFcn:
    """Return EAsT's Mobile FCN (301K parameters at width 1); any number of mels."""
    own = options.parse(MobileFcnOptions, config)
    return MobileFcn(mels, width=config.width, embedding_dim=config.embedding_dim, time_pools=own.time_pools)
