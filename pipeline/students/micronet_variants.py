"""The published MicroNet variants as block tables, and their width multiplier (Li et al., ICCV 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.students.base import round_channels


class Row(NamedTuple):
    """One row of a block table. Groups are those of the pointwise convolutions; 0 says there is none."""

    stride: int
    channels: int
    kernel: int
    expand_height: int
    expand_width: int
    expand_groups: int
    shift_groups: int
    squeeze_groups: int
    output_groups: int
    expand_branches: int
    depthwise_branches: int
    output_branches: int
    reduction_ratio: int


@dataclass(frozen=True)
class MicroNetConfig:
    """One published variant.

    Args:
        stem_groups: outputs of the stem's 3x1 convolution, and of its 1x3 convolution for each of them.
        classifier_channels: hidden width of the ImageNet classifier.
        init_a, init_b: what is added to the dynamic coefficients of the two branches.
    """

    stem_groups: tuple[int, int]
    rows: tuple[Row, ...]
    classifier_channels: int
    dropout: float
    init_a: tuple[float, float] = (1.0, 1.0)
    init_b: tuple[float, float] = (0.0, 0.0)


M0 = MicroNetConfig(
    (2, 2),
    (
        Row(2, 8, 3, 2, 2, 0, 4, 2, 2, 2, 0, 1, 1),
        Row(2, 12, 3, 2, 2, 0, 8, 4, 4, 2, 2, 1, 1),
        Row(2, 16, 5, 2, 2, 0, 12, 4, 4, 2, 2, 1, 1),
        Row(1, 32, 5, 1, 4, 4, 4, 4, 4, 2, 2, 1, 1),
        Row(2, 64, 5, 1, 4, 8, 8, 8, 8, 2, 2, 1, 1),
        Row(1, 96, 3, 1, 4, 8, 8, 8, 8, 2, 2, 1, 2),
        Row(1, 384, 3, 1, 4, 12, 12, 0, 0, 2, 2, 1, 2),
    ),
    640,
    0.05,
)
M1 = MicroNetConfig(
    (3, 2),
    (
        Row(2, 8, 3, 2, 2, 0, 6, 2, 2, 2, 0, 1, 1),
        Row(2, 16, 3, 2, 2, 0, 8, 4, 4, 2, 2, 1, 1),
        Row(2, 16, 5, 2, 2, 0, 16, 4, 4, 2, 2, 1, 1),
        Row(1, 32, 5, 1, 6, 4, 4, 4, 4, 2, 2, 1, 1),
        Row(2, 64, 5, 1, 6, 8, 8, 8, 8, 2, 2, 1, 1),
        Row(1, 96, 3, 1, 6, 8, 8, 8, 8, 2, 2, 1, 2),
        Row(1, 576, 3, 1, 6, 12, 12, 0, 0, 2, 2, 1, 2),
    ),
    960,
    0.05,
)
M2 = MicroNetConfig(
    (4, 2),
    (
        Row(2, 12, 3, 2, 2, 0, 8, 4, 4, 2, 0, 1, 1),
        Row(2, 16, 3, 2, 2, 0, 12, 4, 4, 2, 2, 1, 1),
        Row(1, 24, 3, 2, 2, 0, 16, 4, 4, 2, 2, 1, 1),
        Row(2, 32, 5, 1, 6, 6, 6, 4, 4, 2, 2, 1, 1),
        Row(1, 32, 5, 1, 6, 8, 8, 4, 4, 2, 2, 1, 2),
        Row(1, 64, 5, 1, 6, 8, 8, 8, 8, 2, 2, 1, 2),
        Row(2, 96, 5, 1, 6, 8, 8, 8, 8, 2, 2, 1, 2),
        Row(1, 128, 3, 1, 6, 12, 12, 8, 8, 2, 2, 1, 2),
        Row(1, 768, 3, 1, 6, 16, 16, 0, 0, 2, 2, 1, 2),
    ),
    1024,
    0.1,
)
M3 = MicroNetConfig(
    (4, 3),
    (
        Row(2, 16, 3, 2, 2, 0, 12, 4, 4, 0, 2, 0, 1),
        Row(2, 24, 3, 2, 2, 0, 16, 4, 4, 0, 2, 0, 1),
        Row(1, 24, 3, 2, 2, 0, 24, 4, 4, 0, 2, 0, 1),
        Row(2, 32, 5, 1, 6, 6, 6, 4, 4, 0, 2, 0, 1),
        Row(1, 32, 5, 1, 6, 8, 8, 4, 4, 0, 2, 0, 2),
        Row(1, 64, 5, 1, 6, 8, 8, 8, 8, 0, 2, 0, 2),
        Row(1, 80, 5, 1, 6, 8, 8, 8, 8, 0, 2, 0, 2),
        Row(1, 80, 5, 1, 6, 10, 10, 8, 8, 0, 2, 0, 2),
        Row(2, 120, 5, 1, 6, 10, 10, 10, 10, 0, 2, 0, 2),
        Row(1, 120, 5, 1, 6, 12, 12, 10, 10, 0, 2, 0, 2),
        Row(1, 144, 3, 1, 6, 12, 12, 12, 12, 0, 2, 0, 2),
        Row(1, 864, 3, 1, 6, 12, 12, 0, 0, 0, 2, 0, 2),
    ),
    1024,
    0.1,
    init_a=(1.0, 0.5),
    init_b=(0.0, 0.5),
)


def scaled(config: MicroNetConfig, width: float) -> MicroNetConfig:
    """Return ``config`` with every channel count multiplied by ``width``; at 1 it is the published network.

    A block's output is rounded to the nearest multiple of 4 below 32 channels and of 8 above. The stem keeps
    the outputs of each of its groups and scales their number. Groups stay as published where they divide the
    new channels, else become the largest divisor below.
    """
    outer, inner = config.stem_groups
    outer = round_channels(width * outer, 1)
    channels = outer * inner
    rows = []
    for row in config.rows:
        hidden = channels * row.expand_height * row.expand_width
        out_channels = hidden if row.output_groups == 0 else _round(width * row.channels)
        row = row._replace(
            channels=out_channels,
            expand_groups=_fitting(row.expand_groups, channels),
            # As published: where the depthwise convolution widens, each input has its own shift group.
            shift_groups=channels if row.expand_groups == 0 else _fitting(row.shift_groups, hidden),
            squeeze_groups=_fitting(row.squeeze_groups, math.gcd(hidden, out_channels)),
            output_groups=_fitting(row.output_groups, out_channels),
        )
        rows.append(row)
        channels = out_channels
    return replace(config, stem_groups=(outer, inner), rows=tuple(rows))


def _round(channels: float) -> int:
    return round_channels(channels, 4 if channels < 32 else 8)


def _fitting(groups: int, channels: int) -> int:
    return next((g for g in range(groups, 0, -1) if channels % g == 0), 0)
