"""MobileNetV3 on spectrograms, the mn networks of EfficientAT (Schmid et al., ICASSP 2023, arXiv 2211.04772).

Howard et al. (ICCV 2019) with one input channel, true sigmoids in the squeeze-excitation and a last
convolution of six times the last block's channels. Published names and numerics: a checkpoint of the authors
loads as it is, given ``num_classes``; S-SONDO's students (ICASSP 2026) are the same network without classifier.
The small network of Howard et al. is here in the same form; no weights of it are published under these names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Section, StudentConfig
from pipeline.students.base import Student, make_divisible
from pipeline.students.options import parse, takes
from pipeline.students.pooling import MeanPool

STEM_CHANNELS = 16
CLASSIFIER_CHANNELS = 1280
LAST_EXPANSION = 6
SQUEEZE = 4
CHANNEL_DIVISOR = 8
LEAST_PUBLISHED_WIDTH = 0.1
DROPOUT = 0.2
# Large margins against rounding, and statistics over many small batches, as published.
NORM_EPSILON = 1e-3
NORM_MOMENTUM = 0.01

Stride = Literal[1, 2]


@dataclass(frozen=True)
class Row:
    """One inverted residual at width 1: kernel, hidden and output channels, squeeze-excitation, activation, stride."""

    kernel: int
    hidden: int
    channels: int
    squeeze: bool
    hard_swish: bool
    stride: int


ROWS = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)

ROWS_SMALL = (
    Row(3, 16, 16, True, False, 2),
    Row(3, 72, 24, False, False, 2),
    Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2),
    Row(5, 240, 40, True, True, 1),
    Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1),
    Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2),
    Row(5, 576, 96, True, True, 1),
    Row(5, 576, 96, True, True, 1),
)


def channels_at(width: float) -> Callable[[float], int]:
    """Return the rule of channel counts: published multiples of 8; below width 0.1, the least published, of 4."""
    divisor = CHANNEL_DIVISOR if width >= LEAST_PUBLISHED_WIDTH else CHANNEL_DIVISOR // 2
    return lambda channels: make_divisible(channels, divisor)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch norm with the published epsilon and momentum."""
    return nn.BatchNorm2d(channels, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)


def conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, activation: type[nn.Module] | None
) -> nn.Sequential:
    """Return convolution, batch norm and, unless None, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        batch_norm(outputs),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Channel gates from the channels' means: linear, ReLU, linear, sigmoid (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, rounded: Callable[[float], int]) -> None:
        super().__init__()
        hidden = rounded(channels // SQUEEZE)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``x`` times its gates."""
        gates = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * gates[:, :, None, None]


class ConcurrentSqueezeExcitation(nn.Module):
    """The published list of squeeze-excitations, of which these networks have one, over channels."""

    def __init__(self, channels: int, rounded: Callable[[float], int]) -> None:
        super().__init__()
        self.conc_se_layers = nn.ModuleList([SqueezeExcitation(channels, rounded)])

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``x`` times its gates."""
        out: Tensor = self.conc_se_layers[0](x)
        return out


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-excitation, 1x1 projection; a residual where shapes allow."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, row: Row, rounded: Callable[[float], int]
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if row.hard_swish else nn.ReLU
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(conv_norm(inputs, hidden, 1, 1, 1, activation))
        layers.append(conv_norm(hidden, hidden, row.kernel, row.stride, hidden, activation))
        if row.squeeze:
            layers.append(ConcurrentSqueezeExcitation(hidden, rounded))
        layers.append(conv_norm(hidden, outputs, 1, 1, 1, None))
        self.block = nn.Sequential(*layers)
        self.residual = row.stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, outputs, ceil(mels / stride), ceil(frames / stride))``."""
        out: Tensor = self.block(x)
        return out + x if self.residual else out


class MobileNetV3(Student):
    """MobileNetV3 with the mean over mel and time of its last map as embedding.

    The large one has 2,971,664 parameters and 960 features at ``width`` 1, 516,128 and 384 at 0.4, 14,012 at 0.05.

    Args:
        width: multiplies every channel count, rounded to a multiple of 8 (of 4 below width 0.1).
        embedding_dim: width of the embedding; default six times the last block's channels.
        in_channels: input channels, 1 for log-mel.
        num_classes: 0 gives the embedding; more adds the published classifier on the last map.
        rows: :data:`ROWS`, the large network's blocks, or :data:`ROWS_SMALL`.

    Input ``(batch, in_channels, mels, frames)``, any size from 1 x 1.
    """

    not_causal = None

    def __init__(
        self,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        in_channels: int = 1,
        num_classes: int = 0,
        rows: tuple[Row, ...] = ROWS,
    ) -> None:
        rounded = channels_at(width)
        channels = rounded(STEM_CHANNELS * width)
        last = LAST_EXPANSION * rounded(rows[-1].channels * width)
        super().__init__(last, embedding_dim)
        layers: list[nn.Module] = [conv_norm(in_channels, channels, 3, 2, 1, nn.Hardswish)]
        for row in rows:
            hidden, outputs = rounded(row.hidden * width), rounded(row.channels * width)
            layers.append(InvertedResidual(channels, hidden, outputs, row, rounded))
            channels = outputs
        layers.append(conv_norm(channels, last, 1, 1, 1, nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.pool = MeanPool()
        self.classifier = pooled_classifier(last, width, num_classes) if num_classes else None
        initialise(self)

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the logits where there is a classifier."""
        feature_map = self.features(log_mel)
        if self.classifier is not None:
            logits: Tensor = self.classifier(feature_map)
            return logits.float()
        embedding: Tensor = self.embedding(self.pool(feature_map))
        return embedding.float()


def pooled_classifier(features: int, width: float, num_classes: int) -> nn.Sequential:
    """Return mean over the map, linear layer, hard swish, dropout, linear layer."""
    hidden = make_divisible(CLASSIFIER_CHANNELS * width)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, hidden), nn.Hardswish(inplace=True),
        nn.Dropout(DROPOUT), nn.Linear(hidden, num_classes),
    )  # fmt: skip


def initialise(student: Student) -> None:
    """Draw the published initialisation: convolutions by fan-out, linear layers with deviation 0.01."""
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and module is not student.embedding:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


class MnOptions(Section):
    """``[student.options]`` of EfficientAT's mn networks."""

    strides: tuple[Stride, Stride, Stride, Stride] = Field(
        (2, 2, 2, 2),
        description="of the large network's four strided blocks; published also [2,2,2,1], [2,2,1,1]",
    )


def with_strides(rows: tuple[Row, ...], strides: tuple[int, ...]) -> tuple[Row, ...]:
    """Return ``rows`` with the strides of its strided blocks, in order, replaced."""
    given = iter(strides)
    return tuple(replace(row, stride=next(given)) if row.stride > 1 else row for row in rows)


@takes(MnOptions)
def build_mn04(config: StudentConfig, mels: int) -> MobileNetV3:
    """Return EfficientAT's mn04 without classifier (516K parameters at width 1); any number of mels."""
    return _build_large(0.4, config)


@takes(MnOptions)
def build_mn10(config: StudentConfig, mels: int) -> MobileNetV3:
    """Return EfficientAT's mn10, S-SONDO's MobileNetV3, without classifier (2.97M parameters); any number of mels."""
    return _build_large(1.0, config)


def _build_large(width: float, config: StudentConfig) -> MobileNetV3:
    rows = with_strides(ROWS, parse(MnOptions, config).strides)
    return MobileNetV3(width=width * config.width, embedding_dim=config.embedding_dim, rows=rows)


def build_small(config: StudentConfig, mels: int) -> MobileNetV3:
    """Return MobileNetV3-small (927K parameters at width 1); any number of mels."""
    return MobileNetV3(width=config.width, embedding_dim=config.embedding_dim, rows=ROWS_SMALL)
