"""Short-chunk CNN (residual): seven residual blocks of stride 2, the maximum over what is left. EAsT's SC-CNN.

Won, Ferraro, Bogdanov, Serra, "Evaluation of CNN-based Automatic Music Tagging Models", SMC 2020. Published names
and numerics; the log-mel, part of the published module, is a frontend here::

    [embed.frontend]                # 16 kHz, window 512 as by default
    hop_length = 256
    pad_mode = "reflect"
    mels = 128
    min_hz = 0.0
    mel_norm = "none"
    log = "db"
    log_offset = 0.0
    log_floor = 1e-10
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import StudentConfig
from pipeline.section import Section
from pipeline.students import options
from pipeline.students.base import Student, round_channels
from pipeline.students.pooling import MaxPool

CHANNELS = (128, 128, 256, 256, 256, 256, 512)
CHANNEL_DIVISOR = 4
DROPOUT = 0.5

Features = Literal["dense", "pooled"]


class TaggingOptions(Section):
    """``[student.options]`` of the networks of Won et al.; the authors define no embedding."""

    features: Features = Field(
        "dense",
        description="embedding: dense = ReLU of the first dense layer; pooled = the maximum that enters it",
    )


class TaggingStudent(Student):
    """What both networks of Won et al. end in: maximum over frequency and time, dense layer, batch norm, ReLU.

    Args:
        channels: of the last map, which are the dense layer's too.
        embedding_dim: width of the embedding; default ``channels``.
        features: what the embedding is.
        num_classes: 0 gives the embedding; more adds the published classifier, and its logits are given.
    """

    # A batch norm over the spectrogram is the first layer.
    normalises_input = True
    # In the published files, and part of the frontend here.
    published_constants = ("spec.", "hstft.spec.")
    not_causal = None

    def __init__(
        self, channels: int, embedding_dim: int | None, features: Features, num_classes: int
    ) -> None:
        super().__init__(channels, embedding_dim)
        self.gives_pooled = features == "pooled" and not num_classes
        self.dense2: nn.Module | None = None
        self.pool = MaxPool()
        if self.gives_pooled:
            return
        self.dense1 = nn.Linear(channels, channels)
        self.bn = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(DROPOUT)
        if num_classes:
            self.dense2 = nn.Linear(channels, num_classes)

    def embedded(self, maps: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the logits where there are classes."""
        pooled: Tensor = self.pool(maps)
        if self.gives_pooled:
            return self.embedding(pooled).float()  # type: ignore[no-any-return]
        hidden = torch.relu(self.bn(self.dense1(pooled)))
        out: Tensor = self.embedding(hidden) if self.dense2 is None else self.dense2(self.dropout(hidden))
        return out.float()


class StridedResidual(nn.Module):
    """Two 3x3 convolutions, the first with stride 2, and a 3x3 convolution with stride 2 beside them."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, out_channels, 3, 2, 1)
        self.bn_1 = nn.BatchNorm2d(out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        self.bn_2 = nn.BatchNorm2d(out_channels)
        self.conv_3 = nn.Conv2d(channels, out_channels, 3, 2, 1)
        self.bn_3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, out_channels, mels / 2, frames / 2)``, rounded up."""
        if self.training and x.shape[3] == 1:
            # oneDNN's bfloat16 weight gradient of stride 2 over one column is uninitialised memory; with the column
            # of zeros that the padding adds anyway it is right.
            x = F.pad(x, (0, 1))
        main = self.bn_2(self.conv_2(torch.relu(self.bn_1(self.conv_1(x)))))
        return torch.relu(main + self.bn_3(self.conv_3(x)))


class ShortChunkCnnRes(TaggingStudent):
    """Short-chunk CNN with residual connections: 12.1M parameters at width 1 with 50 classes.

    Args:
        width: multiplies every channel count, rounded to the nearest multiple of 4 (at least 4).
        embedding_dim: width of the embedding; default the last channel count, 512.
        features: what the embedding is.
        num_classes: 0 gives the embedding; more adds the published classifier.

    Input: log-mel as stored (its own batch norm comes first), any size from 1 x 1. The published network is for
    128 mels, whose seven halvings leave one row; of more rows the maximum is taken too.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        features: Features = "dense",
        num_classes: int = 0,
    ) -> None:
        widths = [round_channels(width * channels, CHANNEL_DIVISOR) for channels in CHANNELS]
        super().__init__(widths[-1], embedding_dim, features, num_classes)
        self.spec_bn = nn.BatchNorm2d(1)
        for number, (before, after) in enumerate(zip([1, *widths], widths, strict=False), start=1):
            self.add_module(f"layer{number}", StridedResidual(before, after))

    def forward(self, log_mel: Float[Tensor, "batch 1 mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the logits where there are classes."""
        x = self.spec_bn(log_mel)
        for number in range(1, len(CHANNELS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return self.embedded(x)


@options.takes(TaggingOptions)
def build_short_chunk_cnn_res(config: StudentConfig, mels: int) -> ShortChunkCnnRes:
    """Return the residual short-chunk CNN (12.1M parameters at width 1); any number of mels."""
    own = options.parse(TaggingOptions, config)
    return ShortChunkCnnRes(width=config.width, embedding_dim=config.embedding_dim, features=own.features)
