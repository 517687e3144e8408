"""ERes2Net: Res2 blocks with attentional fusion inside and between the scales, the third student of S-SONDO.

Chen et al., "An Enhanced Res2Net with Local and Global Feature Fusion for Speaker Verification", Interspeech 2023, in
S-SONDO's form (ICASSP 2026): a fifth stage and its fusion, no layer after the pool. Published names and numerics;
the authors' files have the prefix ``student_model.model.``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import StudentConfig
from pipeline.section import Section
from pipeline.students import options
from pipeline.students.base import Student, round_channels
from pipeline.students.pooling import StatisticsPool

CHANNELS = 16
# Of the five stages, over the stem's channels, and whether blocks fuse by attention.
PLANES = (1, 2, 4, 8, 2)
STRIDES = (1, 2, 2, 2, 2)
FUSED = (False, False, True, True, True)
BLOCKS = (3, 4, 6, 3, 3)
EXPANSION = 2
SCALE = 2
REDUCTION = 4
HIGHEST = 20.0


class Eres2NetOptions(Section):
    """``[student.options]`` of ERes2Net."""

    blocks: tuple[int, int, int, int, int] = Field(
        BLOCKS, description="blocks of the five stages, each at least 1"
    )


class AttentionalFusion(nn.Module):
    """``x * (1 + a) + y * (1 - a)``, a = tanh of two 1x1 convolutions over both (Dai et al., WACV 2021, local half)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.local_att = nn.Sequential(
            nn.Conv2d(2 * channels, hidden, 1), nn.BatchNorm2d(hidden), nn.SiLU(inplace=True),
            nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "batch channels mels frames"], y: Tensor) -> Tensor:
        """Return the mixture of ``x`` and ``y``, both of one shape."""
        attention = torch.tanh(self.local_att(torch.cat([x, y], dim=1)))
        return x * (1.0 + attention) + y * (1.0 - attention)


class Res2Block(nn.Module):
    """1x1 convolution, two 3x3 ones in turn on its halves, 1x1 convolution; every ReLU clamped to 20.

    The second half is added to, or with ``fused`` mixed by attention with, what the first became.
    """

    def __init__(self, channels: int, planes: int, stride: int, fused: bool) -> None:
        super().__init__()
        self.part = max(1, planes // SCALE)
        inside, outputs = self.part * SCALE, planes * EXPANSION
        self.conv1 = nn.Conv2d(channels, inside, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.convs = nn.ModuleList(
            nn.Conv2d(self.part, self.part, 3, padding=1, bias=False) for _ in range(SCALE)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(self.part) for _ in range(SCALE))
        if fused:
            self.fuse_models = nn.ModuleList(AttentionalFusion(self.part) for _ in range(SCALE - 1))
        self.fused = fused
        self.conv3 = nn.Conv2d(inside, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != outputs:
            self.shortcut.append(nn.Conv2d(channels, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return ``(batch, 2 * planes, mels / stride, frames / stride)``, rounded up."""
        parts = clamped(self.bn1(self.conv1(x))).split(self.part, dim=1)
        done: list[Tensor] = []
        for index, (part, conv, norm) in enumerate(zip(parts, self.convs, self.bns, strict=True)):
            given = part
            if index:
                given = self.fuse_models[index - 1](done[-1], part) if self.fused else done[-1] + part
            done.append(clamped(norm(conv(given))))
        out = self.bn3(self.conv3(torch.cat(done, dim=1)))
        return clamped(out + self.shortcut(x))


def clamped(x: Tensor) -> Tensor:
    """Return ``x`` clamped to [0, 20]."""
    return F.hardtanh(x, 0.0, HIGHEST)


class Eres2Net(Student):
    """ERes2Net of S-SONDO: 1,368,068 parameters and, of 128 mels, 1024 features at width 1.

    Args:
        mels: mel bands: the pool keeps the mel axis, so the embedding is ``8 * channels * ceil(mels / 16)`` wide.
        width: multiplies the stem's 16 channels, rounded to a whole number; all others follow.
        embedding_dim: width of the embedding; default that of the pool.
        blocks: of the five stages.
        in_channels: 1 for log-mel.

    Input ``(batch, in_channels, mels, frames)``, any number of frames; the published log-mel is not normalised.
    Weights start as torch draws them, as the authors' do.
    """

    not_causal = None

    def __init__(
        self,
        mels: int = 128,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        blocks: Sequence[int] = BLOCKS,
        in_channels: int = 1,
    ) -> None:
        base = round_channels(CHANNELS * width, 1)
        rows = -(-mels // 16)
        last = PLANES[-1] * EXPANSION * base
        super().__init__(2 * last * rows, embedding_dim)
        self.conv1 = nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        channels = base
        outputs = []
        stages = zip(PLANES, STRIDES, FUSED, blocks, strict=True)
        for number, (planes, stride, fused, count) in enumerate(stages, start=1):
            layers = nn.Sequential()
            for block in range(count):
                layers.append(Res2Block(channels, planes * base, 1 if block else stride, fused))
                channels = planes * base * EXPANSION
            outputs.append(channels)
            self.add_module(f"layer{number}", layers)
        for number in (1, 2, 3, 4):
            down = nn.Conv2d(outputs[number - 1], outputs[number], 3, 2, 1, bias=False)
            self.add_module(f"layer{number}_downsample", down)
        for number in (2, 3, 4, 5):
            self.add_module(f"fuse_mode{_digits(number)}", AttentionalFusion(outputs[number - 1]))
        self.pool = StatisticsPool()

    def maps(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Tensor:
        """Return the last fusion's maps ``(batch, dim, ceil(mels / 16), ceil(frames / 16))``."""
        x = torch.relu(self.bn1(self.conv1(log_mel)))
        fused = x = self.get_submodule("layer1")(x)
        for number in (2, 3, 4, 5):
            x = self.get_submodule(f"layer{number}")(x)
            down = self.get_submodule(f"layer{number - 1}_downsample")(fused)
            fused = self.get_submodule(f"fuse_mode{_digits(number)}")(x, down)
        return fused  # type: ignore[no-any-return]

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding."""
        out: Tensor = self.embedding(self.pool(self.maps(log_mel)))
        return out.float()


def _digits(last: int) -> str:
    return "".join(map(str, range(1, last + 1)))


@options.takes(Eres2NetOptions)
def build_eres2net(config: StudentConfig, mels: int) -> Eres2Net:
    """Return S-SONDO's ERes2Net (1.37M parameters at width 1); the number of mels is that given."""
    own = options.parse(Eres2NetOptions, config)
    return Eres2Net(mels, width=config.width, embedding_dim=config.embedding_dim, blocks=own.blocks)
