"""MobileNetV3-large on spectrograms, the mn networks of EfficientAT (Schmid et al., ICASSP 2023, arXiv 2211.04772).

Howard et al. (ICCV 2019) with one input channel, true sigmoids in the squeeze-excitation and a last
convolution of six times the last block's channels. Published names and numerics: a checkpoint of the authors
loads as it is, given ``num_classes``; S-SONDO's students (ICASSP 2026) are the same network without classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.config import StudentConfig
from pipeline.students.base import Student, make_divisible

STEM_CHANNELS = 16
CLASSIFIER_CHANNELS = 1280
SQUEEZE = 4
DROPOUT = 0.2
# Large margins against rounding, and statistics over many small batches, as published.
NORM_EPSILON = 1e-3
NORM_MOMENTUM = 0.01


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

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = make_divisible(channels // SQUEEZE)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``x`` times its gates."""
        gates = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * gates[:, :, None, None]


class ConcurrentSqueezeExcitation(nn.Module):
    """The published list of squeeze-excitations, of which these networks have one, over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conc_se_layers = nn.ModuleList([SqueezeExcitation(channels)])

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``x`` times its gates."""
        out: Tensor = self.conc_se_layers[0](x)
        return out


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-excitation, 1x1 projection; a residual where shapes allow."""

    def __init__(self, inputs: int, hidden: int, outputs: int, row: Row) -> None:
        super().__init__()
        activation = nn.Hardswish if row.hard_swish else nn.ReLU
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(conv_norm(inputs, hidden, 1, 1, 1, activation))
        layers.append(conv_norm(hidden, hidden, row.kernel, row.stride, hidden, activation))
        if row.squeeze:
            layers.append(ConcurrentSqueezeExcitation(hidden))
        layers.append(conv_norm(hidden, outputs, 1, 1, 1, None))
        self.block = nn.Sequential(*layers)
        self.residual = row.stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, outputs, ceil(mels / stride), ceil(frames / stride))``."""
        out: Tensor = self.block(x)
        return out + x if self.residual else out


class MobileNetV3(Student):
    """MobileNetV3-large with the mean over mel and time of its last map as embedding.

    At ``width`` 1 it has 2,971,664 parameters and 960 features; 0.4 gives 516,128 and 384.

    Args:
        width: multiplies every channel count, rounded to a multiple of 8 (at least 8).
        embedding_dim: width of the embedding; default six times the last block's channels.
        in_channels: input channels, 1 for log-mel.
        num_classes: 0 gives the embedding; more adds the published classifier on the last map.

    Input ``(batch, in_channels, mels, frames)``, any size from 1 x 1.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        in_channels: int = 1,
        num_classes: int = 0,
    ) -> None:
        channels = make_divisible(STEM_CHANNELS * width)
        last = 6 * make_divisible(ROWS[-1].channels * width)
        super().__init__(last, embedding_dim)
        layers: list[nn.Module] = [conv_norm(in_channels, channels, 3, 2, 1, nn.Hardswish)]
        for row in ROWS:
            hidden, outputs = make_divisible(row.hidden * width), make_divisible(row.channels * width)
            layers.append(InvertedResidual(channels, hidden, outputs, row))
            channels = outputs
        layers.append(conv_norm(channels, last, 1, 1, 1, nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.classifier = pooled_classifier(last, width, num_classes) if num_classes else None
        initialise(self)

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the logits where there is a classifier."""
        feature_map = self.features(log_mel)
        if self.classifier is not None:
            logits: Tensor = self.classifier(feature_map)
            return logits.float()
        embedding: Tensor = self.embedding(feature_map.mean(dim=(2, 3)))
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


def build_mn(config: StudentConfig, mels: int) -> MobileNetV3:
    """Return EfficientAT's mn network (2.97M parameters at width 1); any number of mels."""
    return MobileNetV3(width=config.width, embedding_dim=config.embedding_dim)
