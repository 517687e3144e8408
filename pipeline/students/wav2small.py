"""Wav2Small and Wav2Tiny: seven narrow 3x3 convolutions and a learnt pooling over time, for speech emotion.

Kounadis-Bastian et al., "Wav2Small: Distilling Wav2Vec2 to 72K Parameters for Low-Resource Speech Emotion
Recognition", 2024 (arXiv 2408.13920), and the model card of its smaller successor (17K). All of them::

    7 x [3x3 convolution without bias, batch norm, ReLU]; 3x3 maximum pooling of stride 2 after the third

What is known and what was chosen (counts are at the published 26 mels):

- ``wav2small_17k``: the card's network, every constant published. 10,806 trainable parameters with its three outputs;
  with the 4,224 numbers of its frozen transform 15,030. It pools each channel by 1x1 convolutions to M (channels,
  mels) and gives M beside M M^T.
- ``wav2small`` (72K): the paper's text names the VGG7 body, 250 tokens a second and the 72K, no widths. Chosen: the
  card's 13 channels and 26 mels, hence tokens of 13 x 13 = 169 numbers, pooled by two full linear layers: 67,395
  trainable parameters with three outputs, 71,619 with the frozen transform. No other width gives the published count.
- ``wav2small_90k``: as a report on TESS counts its adaptation with seven classes; its changes are published as a
  picture only. Chosen: 15 channels, 90,307 trainable parameters with seven outputs.
- ``wav2tiny`` (15K), of the same report: "channel reductions and simplified pooling", no numbers. Chosen: 8 channels,
  and of the two linear layers only the one that gives the weights: 15,295 trainable parameters with seven outputs.
  A re-creation, not the report's own network.

The published frontend, waveform standardised, frames of 4 ms every 2 ms::

    [embed.frontend]
    n_fft = 64
    window_length = 64
    hop_length = 32
    center = false
    mels = 26
    min_hz = 0.0
    mel_scale = "slaney"
    log = "db"
    log_offset = 0.0
    log_floor = 1e-10
    standardise = true
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.config import StudentConfig
from pipeline.students.base import Student

BLOCKS = 7
POOL_AFTER = 3


@dataclass(frozen=True)
class Wav2SmallConfig:
    """A member of the family.

    Attributes:
        channels: of every convolution.
        pooling: ``tokens`` = values and weights by linear layers over a frame's channels and mels; ``weights`` = the
            weights alone, the values as they are; ``correlation`` = both by 1x1 convolutions, and M M^T beside M.
    """

    channels: int
    pooling: Literal["tokens", "weights", "correlation"]


WAV2SMALL_72K = Wav2SmallConfig(13, "tokens")
WAV2SMALL_90K = Wav2SmallConfig(15, "tokens")
WAV2SMALL_17K = Wav2SmallConfig(13, "correlation")
WAV2TINY_15K = Wav2SmallConfig(8, "weights")


class ConvolutionBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "batch channels frames mels"]) -> Tensor:
        """Return a map of the same size."""
        return torch.relu(self.norm(self.conv(x)))


class Vgg7(nn.Module):
    """The convolutions and the pooling over time.

    Args:
        config: channels and pooling.
        channels: of every convolution, in place of ``config.channels``.
        mels: of the input; the linear layers are as wide as channels times half the mels.
    """

    def __init__(self, config: Wav2SmallConfig, channels: int, mels: int) -> None:
        super().__init__()
        self.pooling = config.pooling
        for number in range(1, BLOCKS + 1):
            self.add_module(f"l{number}", ConvolutionBlock(1 if number == 1 else channels, channels))
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        rows = (mels + 1) // 2
        tokens = channels * rows
        self.width = tokens
        if config.pooling == "correlation":
            self.lin: nn.Module = nn.Conv2d(channels, channels, 1)
            self.sof: nn.Module = nn.Conv2d(channels, channels, 1)
            self.width = channels * (rows + channels)
        else:
            self.lin = nn.Linear(tokens, tokens) if config.pooling == "tokens" else nn.Identity()
            self.sof = nn.Linear(tokens, tokens)

    def forward(self, x: Float[Tensor, "batch 1 frames mels"]) -> Float[Tensor, "batch width"]:
        """Return the pooled features: a sum over time of values times the softmax over time of their weights."""
        for number in range(1, BLOCKS + 1):
            x = self.get_submodule(f"l{number}")(x)
            if number == POOL_AFTER:
                x = self.maxpool(x)
        if self.pooling != "correlation":
            tokens = x.transpose(1, 2).flatten(2)
            pooled: Tensor = (self.lin(tokens).float() * self.sof(tokens).float().softmax(dim=1)).sum(dim=1)
            return pooled
        matrix: Tensor = (self.lin(x).float() * self.sof(x).float().softmax(dim=2)).sum(dim=2)
        return torch.cat([matrix, matrix @ matrix.transpose(1, 2)], dim=2).flatten(1)


class Wav2Small(Student):
    """A member of the Wav2Small family.

    Args:
        config: which one.
        mels: of the log-mel.
        width: multiplies the channels, rounded up.
        embedding_dim: width of the embedding; default the pooled features, 169 of ``wav2small`` at 26 mels.
        num_classes: 0 gives the embedding; more adds the published linear output (``adv``).

    Input: log-mel as stored, ``(batch, 1, mels, frames)`` of any number of frames.
    """

    # The published network hears decibels as they are: a batch norm follows its first convolution.
    normalises_input = True
    published_constants = ("vgg7.spectrogram_extractor.", "vgg7.logmel_extractor.")
    not_causal = "a softmax over all of the clip's frames weighs them, the later ones too"

    def __init__(
        self,
        config: Wav2SmallConfig,
        mels: int,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        num_classes: int = 0,
    ) -> None:
        channels = max(1, math.ceil(width * config.channels - 1e-9))
        body = Vgg7(config, channels, mels)
        super().__init__(body.width, embedding_dim)
        self.vgg7 = body
        self.adv: nn.Module = nn.Linear(self.embedding_dim, num_classes) if num_classes else nn.Identity()

    def forward(self, log_mel: Float[Tensor, "batch 1 mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the outputs where there are any."""
        out: Tensor = self.adv(self.embedding(self.vgg7(log_mel.transpose(2, 3))))
        return out.float()


def build_72k(config: StudentConfig, mels: int) -> Wav2Small:
    """Return Wav2Small (66,885 parameters at 26 mels and width 1, 169 features)."""
    return _build(WAV2SMALL_72K, config, mels)


def build_90k(config: StudentConfig, mels: int) -> Wav2Small:
    """Return the TESS report's Wav2Small, re-created (88,935 parameters at 26 mels and width 1, 195 features)."""
    return _build(WAV2SMALL_90K, config, mels)


def build_17k(config: StudentConfig, mels: int) -> Wav2Small:
    """Return the model card's Wav2Small (9,789 parameters at width 1; 338 features at 26 mels); any number of mels."""
    return _build(WAV2SMALL_17K, config, mels)


def build_wav2tiny(config: StudentConfig, mels: int) -> Wav2Small:
    """Return Wav2Tiny, re-created (14,560 parameters at 26 mels and width 1, 104 features)."""
    return _build(WAV2TINY_15K, config, mels)


def _build(member: Wav2SmallConfig, config: StudentConfig, mels: int) -> Wav2Small:
    return Wav2Small(member, mels, width=config.width, embedding_dim=config.embedding_dim)
