"""From the last maps to one vector a clip, and the same over what a stream has heard so far."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.students.running import LastMean, RunningDeviation, RunningMax, root

DEVIATION_EPSILON = 1e-8


class MeanPool(nn.Module):
    """The mean over mel and time, in float32."""

    def forward(self, maps: Float[Tensor, "batch channels mels steps"]) -> Float[Tensor, "batch channels"]:
        """Return the mean of every channel's map."""
        return maps.float().mean(dim=(2, 3))


class MaxPool(nn.Module):
    """The maximum over mel and time."""

    def forward(self, maps: Float[Tensor, "batch channels mels steps"]) -> Float[Tensor, "batch channels"]:
        """Return the maximum of every channel's map."""
        return maps.amax(dim=(2, 3))


class MeanMaxPool(nn.Module):
    """Mean over mel; then mean and maximum over time, side by side (cf. Kong et al., PANNs, 2020)."""

    def forward(
        self, maps: Float[Tensor, "batch channels mels steps"]
    ) -> Float[Tensor, "batch twice_channels"]:
        """Return ``[mean over time, maximum over time]``."""
        over_time = maps.float().mean(dim=2)
        return torch.cat([over_time.mean(dim=2), over_time.amax(dim=2)], dim=1)


class StatisticsPool(nn.Module):
    """Mean and unbiased standard deviation over time of every (channel, mel), side by side (TSTP of WeSpeaker).

    The deviation of a single step, which the published pool leaves undefined, is that of no variance.
    """

    def forward(
        self, maps: Float[Tensor, "batch channels mels steps"]
    ) -> Float[Tensor, "batch twice_channels_times_mels"]:
        """Return ``[means, deviations]``, each flattened from (channels, mels)."""
        maps = maps.float()
        mean = maps.mean(dim=3)
        squares = (maps - mean[..., None]).square().sum(dim=3)
        deviation = root(squares / torch.sym_max(maps.shape[3] - 1, 1), DEVIATION_EPSILON)
        return torch.cat([mean.flatten(1), deviation.flatten(1)], dim=1)


class CausalMeanPool(nn.Module):
    """:class:`MeanPool` of the steps so far."""

    def __init__(self, *, keep_axes: bool = False) -> None:
        super().__init__()
        self.keep_axes = keep_axes
        self.running = LastMean()

    def forward(self, maps: Float[Tensor, "batch channels mels steps"]) -> Tensor:
        """Return ``(batch, channels)``, or ``(batch, channels, 1, 1)`` with ``keep_axes``."""
        mean: Tensor = self.running(maps.float().mean(dim=2))
        return mean[:, :, None, None] if self.keep_axes else mean


class CausalMaxPool(nn.Module):
    """:class:`MaxPool` of the steps so far."""

    def __init__(self) -> None:
        super().__init__()
        self.highest = RunningMax()

    def forward(self, maps: Float[Tensor, "batch channels mels steps"]) -> Float[Tensor, "batch channels"]:
        """Return the maximum of every channel's map."""
        highest: Tensor = self.highest(maps.amax(dim=2))
        return highest


class CausalMeanMaxPool(nn.Module):
    """:class:`MeanMaxPool` of the steps so far."""

    def __init__(self) -> None:
        super().__init__()
        self.running = LastMean()
        self.highest = RunningMax()

    def forward(
        self, maps: Float[Tensor, "batch channels mels steps"]
    ) -> Float[Tensor, "batch twice_channels"]:
        """Return ``[mean over time, maximum over time]``."""
        over_time = maps.float().mean(dim=2)
        return torch.cat([self.running(over_time), self.highest(over_time)], dim=1)


class CausalStatisticsPool(nn.Module):
    """:class:`StatisticsPool` of the steps so far."""

    def __init__(self) -> None:
        super().__init__()
        self.running = RunningDeviation(DEVIATION_EPSILON)

    def forward(
        self, maps: Float[Tensor, "batch channels mels steps"]
    ) -> Float[Tensor, "batch twice_channels_times_mels"]:
        """Return ``[means, deviations]``, each flattened from (channels, mels)."""
        mean, deviation = self.running(maps)
        return torch.cat([mean.flatten(1), deviation.flatten(1)], dim=1)
