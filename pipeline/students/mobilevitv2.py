"""MobileViT v2 0.5, 0.75 and 1.0: separable self-attention (Mehta and Rastegari, 2022, arXiv 2206.02680).

State-dict names are those of timm, whose checkpoints load given ``in_channels=3, num_classes=1000``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import StudentConfig
from pipeline.students.base import Student, round_channels

# Stem, then the five stages, of the network of multiplier 1.
CHANNELS = (32, 64, 128, 256, 384, 512)
TRANSFORMER_DEPTHS = (2, 4, 3)
CHANNEL_DIVISOR = 8
PATCH = 2

OddSize = Literal["pad", "resize"]


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and, unless told otherwise, SiLU."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act: nn.Module = nn.SiLU() if activate else nn.Identity()

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, out_channels, ceil(mels / stride), ceil(frames / stride))``."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class InvertedResidual(nn.Module):
    """Widen, 3x3 depthwise, project linearly; residual where shapes allow (Sandler et al., 2018)."""

    def __init__(self, channels: int, out_channels: int, stride: int, expansion: int = 2) -> None:
        super().__init__()
        hidden = expansion * channels
        self.conv1_1x1 = ConvNorm(channels, hidden, 1)
        self.conv2_kxk = ConvNorm(hidden, hidden, 3, stride, groups=hidden)
        self.conv3_1x1 = ConvNorm(hidden, out_channels, 1, activate=False)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, out_channels, ceil(mels / stride), ceil(frames / stride))``."""
        out: Tensor = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return out + x if self.residual else out


class SeparableSelfAttention(nn.Module):
    """Self-attention in linear time: one context score a patch, not one for every pair of patches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.qkv_proj = nn.Conv2d(dim, 1 + 2 * dim, 1)
        self.out_proj = nn.Conv2d(dim, dim, 1)

    def forward(
        self, x: Float[Tensor, "batch dim pixels patches"]
    ) -> Float[Tensor, "batch dim pixels patches"]:
        query, key, value = self.qkv_proj(x).split([1, self.dim, self.dim], dim=1)
        context = (key * query.softmax(dim=-1)).sum(dim=-1, keepdim=True)
        out: Tensor = self.out_proj(F.relu(value) * context)
        return out


class Mlp(nn.Module):
    """Two 1x1 convolutions with SiLU between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 2 * dim, 1)
        self.act = nn.SiLU()
        self.fc2 = nn.Conv2d(2 * dim, dim, 1)

    def forward(
        self, x: Float[Tensor, "batch dim pixels patches"]
    ) -> Float[Tensor, "batch dim pixels patches"]:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class LinearTransformerBlock(nn.Module):
    """Pre-norm transformer block; the norm's statistics are over channels and all positions of one item."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.attn = SeparableSelfAttention(dim)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = Mlp(dim)

    def forward(
        self, x: Float[Tensor, "batch dim pixels patches"]
    ) -> Float[Tensor, "batch dim pixels patches"]:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class MobileVitBlock(nn.Module):
    """Local convolution, then transformers over 2x2 patches, then projection; no residual around it.

    Maps of odd size: "pad" adds a row or column of zeros before the block and crops it after: the map keeps
    its size; "resize", as published, stretches the map to the next even size (bilinear, corners aligned).
    """

    def __init__(self, channels: int, depth: int, odd_size: OddSize) -> None:
        super().__init__()
        self.odd_size = odd_size
        dim = round_channels(channels / 2, CHANNEL_DIVISOR)
        self.conv_kxk = ConvNorm(channels, channels, 3, groups=channels)
        self.conv_1x1 = nn.Conv2d(channels, dim, 1, bias=False)
        self.transformer = nn.Sequential(*(LinearTransformerBlock(dim) for _ in range(depth)))
        self.norm = nn.GroupNorm(1, dim)
        self.conv_proj = ConvNorm(dim, channels, 1, activate=False)

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return the map: of its own size ("pad"), or of the next even size ("resize")."""
        height, width = x.shape[2], x.shape[3]
        rows, columns = (height + 1) // PATCH, (width + 1) // PATCH
        if self.odd_size == "pad":
            x = F.pad(x, (0, PATCH * columns - width, 0, PATCH * rows - height))
        elif torch.compiler.is_exporting() or height % PATCH or width % PATCH:
            # An exported graph cannot choose at run time, so it always resizes: to the same size, the identity.
            x = F.interpolate(x, size=(PATCH * rows, PATCH * columns), mode="bilinear", align_corners=True)
        x = self.conv_1x1(self.conv_kxk(x))
        batch, dim = x.shape[0], x.shape[1]
        x = x.reshape(batch, dim, rows, PATCH, columns, PATCH).permute(0, 1, 3, 5, 2, 4)
        x = self.norm(self.transformer(x.reshape(batch, dim, PATCH * PATCH, rows * columns)))
        x = x.reshape(batch, dim, PATCH, PATCH, rows, columns).permute(0, 1, 4, 2, 5, 3)
        out: Tensor = self.conv_proj(x.reshape(batch, dim, PATCH * rows, PATCH * columns))
        return out[:, :, :height, :width] if self.odd_size == "pad" else out


class Head(nn.Module):
    """Global mean, and the ImageNet classifier where it is wanted."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.fc: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()


class MobileVitV2(Student):
    """MobileViT v2 of Mehta and Rastegari (2022).

    Args:
        multiplier: 0.5, 0.75 or 1.0, the published width.
        width: multiplies the channels further, rounded to the nearest multiple of 8 (at least 8).
        embedding_dim: width of the embedding; default 512 x multiplier x width.
        odd_size: what is done to maps whose sides the 2x2 patch does not divide; see :class:`MobileVitBlock`.
        in_channels: 1 for log-mel, 3 for the published weights.
        num_classes: 0 gives the embedding, more adds the published classifier.

    Input ``(batch, in_channels, mels, frames)``, any size from 1 x 1.
    """

    not_causal = "its attention weighs every patch of the clip against all others, the later ones too"

    def __init__(
        self,
        multiplier: float = 0.5,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        odd_size: OddSize = "pad",
        in_channels: int = 1,
        num_classes: int = 0,
    ) -> None:
        stem, *stages = [round_channels(c * multiplier * width, CHANNEL_DIVISOR) for c in CHANNELS]
        super().__init__(stages[-1], embedding_dim)
        self.stem = ConvNorm(in_channels, stem, 3, 2)
        self.stages = nn.Sequential(
            nn.Sequential(InvertedResidual(stem, stages[0], 1)),
            nn.Sequential(
                InvertedResidual(stages[0], stages[1], 2), InvertedResidual(stages[1], stages[1], 1)
            ),
            *(
                nn.Sequential(InvertedResidual(before, after, 2), MobileVitBlock(after, depth, odd_size))
                for before, after, depth in zip(stages[1:], stages[2:], TRANSFORMER_DEPTHS, strict=False)
            ),
        )
        self.head = Head(self.embedding_dim, num_classes)
        initialise(self)

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the classifier's logits where there is one."""
        pooled = self.head.global_pool(self.stages(self.stem(log_mel)))
        out: Tensor = self.head.fc(self.embedding(pooled))
        return out.float()


def initialise(student: Student) -> None:
    """Draw convolutions by fan-out (He et al., 2015) and the classifier with deviation 0.01."""
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            outputs = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / outputs))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Head) and isinstance(module.fc, nn.Linear):
            nn.init.normal_(module.fc.weight, std=0.01)
            nn.init.zeros_(module.fc.bias)


def build_050(config: StudentConfig, mels: int) -> MobileVitV2:
    """Return MobileViT v2 0.5 (1.11M parameters at width 1); any number of mels."""
    return _build(0.5, config)


def build_075(config: StudentConfig, mels: int) -> MobileVitV2:
    """Return MobileViT v2 0.75 (2.48M parameters at width 1); any number of mels."""
    return _build(0.75, config)


def build_100(config: StudentConfig, mels: int) -> MobileVitV2:
    """Return MobileViT v2 1.0 (4.39M parameters at width 1); any number of mels."""
    return _build(1.0, config)


def _build(multiplier: float, config: StudentConfig) -> MobileVitV2:
    return MobileVitV2(
        multiplier, width=config.width, embedding_dim=config.embedding_dim, odd_size=config.odd_size
    )
