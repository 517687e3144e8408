"""MobileViT v1 xxs and xs: softmax attention between patches inside a MobileNet (Mehta and Rastegari, ICLR 2022).

arXiv 2110.02178. State-dict names are those of timm, whose checkpoints load given ``in_channels=3,
num_classes=1000``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import StudentConfig
from pipeline.students.base import Student, round_channels
from pipeline.students.mobilevitv2 import (
    CHANNEL_DIVISOR,
    PATCH,
    TRANSFORMER_DEPTHS,
    ConvNorm,
    Head,
    InvertedResidual,
    OddSize,
    initialise,
)

HEADS = 4
MLP_RATIO = 2
LAST_EXPANSION = 4


@dataclass(frozen=True)
class MobileVitConfig:
    """A published size.

    Attributes:
        channels: of the stem, then of the five stages.
        dims: of the last three stages' transformers.
        expansion: hidden over input channels of the inverted residuals.
    """

    channels: tuple[int, int, int, int, int, int]
    dims: tuple[int, int, int]
    expansion: int


XXS = MobileVitConfig((16, 16, 24, 48, 64, 80), (64, 80, 96), 2)
XS = MobileVitConfig((16, 32, 48, 64, 80, 96), (96, 120, 144), 4)


class Attention(nn.Module):
    """Multi-head softmax attention (Vaswani et al., NeurIPS 2017), queries, keys and values from one layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch patches dim"]:
        """Return what every patch takes from all patches."""
        batch, patches, dim = x.shape
        qkv = self.qkv(x).reshape(batch, patches, 3, HEADS, dim // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        out = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(batch, patches, dim))
        return projected


class Mlp(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch patches dim"]:
        """Return the same shape."""
        out: Tensor = self.fc2(F.silu(self.fc1(x)))
        return out


class TransformerBlock(nn.Module):
    """Attention, then the two linear layers, each after a layer norm and beside a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch patches dim"]:
        """Return the same shape."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class MobileVitBlock(nn.Module):
    """Local convolutions, transformers between 2x2 patches, projection, and fusion with the block's input.

    Attention runs for each of the patch's four pixels apart, over all patches: its cost grows with the square
    of the clip's length. Maps of odd size: "pad" adds a row or column of zeros before the block and leaves it out
    afterwards; "resize", as published, stretches the map to the next even size and back (bilinear, corners not
    aligned). Both keep the map's size.
    """

    def __init__(self, channels: int, dim: int, depth: int, odd_size: OddSize) -> None:
        super().__init__()
        self.odd_size = odd_size
        self.conv_kxk = ConvNorm(channels, channels, 3)
        self.conv_1x1 = nn.Conv2d(channels, dim, 1, bias=False)
        self.transformer = nn.Sequential(*(TransformerBlock(dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.conv_proj = ConvNorm(dim, channels, 1)
        self.conv_fusion = ConvNorm(2 * channels, channels, 3)

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, channels, mels, frames)``."""
        shortcut, height, width = x, x.shape[2], x.shape[3]
        rows, columns = (height + 1) // PATCH, (width + 1) // PATCH
        # An exported graph cannot choose at run time, so it always resizes: to the same size, the identity.
        resizes = self.odd_size == "resize" and (
            torch.compiler.is_exporting() or bool(height % PATCH or width % PATCH)
        )
        if self.odd_size == "pad":
            x = F.pad(x, (0, PATCH * columns - width, 0, PATCH * rows - height))
        x = self.conv_1x1(self.conv_kxk(x))
        if resizes:
            x = F.interpolate(x, size=(PATCH * rows, PATCH * columns), mode="bilinear", align_corners=False)
        batch, dim = x.shape[0], x.shape[1]
        x = x.reshape(batch, dim, rows, PATCH, columns, PATCH).permute(0, 3, 5, 2, 4, 1)
        x = self.norm(self.transformer(x.reshape(batch * PATCH * PATCH, rows * columns, dim)))
        x = x.reshape(batch, PATCH, PATCH, rows, columns, dim).permute(0, 5, 3, 1, 4, 2)
        x = x.reshape(batch, dim, PATCH * rows, PATCH * columns)
        if resizes:
            x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        x = self.conv_proj(x[:, :, :height, :width])
        out: Tensor = self.conv_fusion(torch.cat((shortcut, x), dim=1))
        return out


class MobileVit(Student):
    """MobileViT v1.

    Args:
        config: :data:`XXS` or :data:`XS`.
        width: multiplies every channel count, rounded to the nearest multiple of 8 (at least 8).
        embedding_dim: width of the embedding; default four times the last stage's channels.
        odd_size: what is done to maps whose sides the 2x2 patch does not divide; see :class:`MobileVitBlock`.
        in_channels: 1 for log-mel, 3 for the published weights.
        num_classes: 0 gives the embedding, more adds the published classifier.

    Input ``(batch, in_channels, mels, frames)``, any size from 1 x 1.
    """

    not_causal = "its transformers attend over the whole clip, and between two frames of a patch"

    def __init__(
        self,
        config: MobileVitConfig = XXS,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        odd_size: OddSize = "pad",
        in_channels: int = 1,
        num_classes: int = 0,
    ) -> None:
        stem, *stages = [round_channels(c * width, CHANNEL_DIVISOR) for c in config.channels]
        dims = [round_channels(dim * width, CHANNEL_DIVISOR) for dim in config.dims]
        super().__init__(LAST_EXPANSION * stages[-1], embedding_dim)
        expansion = config.expansion
        self.stem = ConvNorm(in_channels, stem, 3, 2)
        self.stages = nn.Sequential(
            nn.Sequential(InvertedResidual(stem, stages[0], 1, expansion)),
            nn.Sequential(
                InvertedResidual(stages[0], stages[1], 2, expansion),
                InvertedResidual(stages[1], stages[1], 1, expansion),
                InvertedResidual(stages[1], stages[1], 1, expansion),
            ),
            *(
                nn.Sequential(
                    InvertedResidual(before, after, 2, expansion), MobileVitBlock(after, dim, depth, odd_size)
                )
                for before, after, dim, depth in zip(
                    stages[1:], stages[2:], dims, TRANSFORMER_DEPTHS, strict=False
                )
            ),
        )
        self.final_conv = ConvNorm(stages[-1], self.pooled_dim, 1)
        self.head = Head(self.embedding_dim, num_classes)
        initialise(self)
        for module in self.stages.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the classifier's logits where there is one."""
        pooled = self.head.global_pool(self.final_conv(self.stages(self.stem(log_mel))))
        out: Tensor = self.head.fc(self.embedding(pooled))
        return out.float()


def build_xxs(config: StudentConfig, mels: int) -> MobileVit:
    """Return MobileViT xxs (951K parameters at width 1); any number of mels."""
    return _build(XXS, config)


def build_xs(config: StudentConfig, mels: int) -> MobileVit:
    """Return MobileViT xs (1.93M parameters at width 1); any number of mels."""
    return _build(XS, config)


def _build(size: MobileVitConfig, config: StudentConfig) -> MobileVit:
    return MobileVit(size, width=config.width, embedding_dim=config.embedding_dim, odd_size=config.odd_size)
