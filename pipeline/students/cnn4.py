"""Four convolutions with batch norm and ReLU: the student of the first trial of this project.

The body is the plain convolution-pooling stack of Choi et al. (ICASSP 2017); mean over mel, then mean and
maximum over time, side by side, follow Kong et al. (PANNs, 2020), who add the two instead.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.config import StudentConfig
from pipeline.errors import ConfigError
from pipeline.students.base import Student, round_channels
from pipeline.students.pooling import MeanMaxPool

CHANNELS = (16, 32, 64, 128)
WIDE_CHANNELS = (24, 48, 96, 160)
CHANNEL_DIVISOR = 4


class Cnn4(Student):
    """conv3x3 + BN + ReLU four times; stride 2 first, 2x2 max pooling after the first three.

    Pooling keeps an odd last row or column (the trial dropped it), so that no input is too short: 115 frames
    give 8 steps of time. At ``width`` 1 it has 97,392 parameters and 256 features; channels 24, 48, 96 and 160
    give 190,952 and 320.

    Args:
        channels: output channels of the four convolutions at width 1.
        width: multiplies every channel count, rounded to the nearest multiple of 4 (at least 4).
        embedding_dim: width of the embedding; default twice the last channel count.
        in_channels: input channels, 1 for log-mel.

    Input ``(batch, in_channels, mels, frames)``, any size from 1 x 1.

    Raises:
        ConfigError: ``channels`` are not four.
    """

    not_causal = None

    def __init__(
        self,
        channels: tuple[int, ...] = CHANNELS,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        in_channels: int = 1,
    ) -> None:
        if len(channels) != 4:
            raise ConfigError("cnn4 has four convolutions", expected="4 channel counts", got=channels)
        widths = [round_channels(width * c, CHANNEL_DIVISOR) for c in channels]
        super().__init__(2 * widths[-1], embedding_dim)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            layers += [
                nn.Conv2d(before, after, 3, stride=2 if index == 0 else 1, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            if index < 3:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = MeanMaxPool()

    def forward(self, log_mel: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding ``[mean over time, maximum over time]`` of the mel-averaged last map."""
        embedding: Tensor = self.embedding(self.pool(self._map(log_mel)))
        return embedding.float()

    def _map(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.features(x)  # type: ignore[no-any-return]
        # Maximum and ReLU commute: pooling first gives the same map and a fifth less time a training step.
        # Exported, ReLU stays next to its convolution, where runtimes fuse the two.
        layers = list(self.features)
        for first in (0, 4, 8):
            convolution, norm, relu, pool = layers[first : first + 4]
            x = relu(pool(norm(convolution(x))))
        convolution, norm, relu = layers[12:]
        return relu(norm(convolution(x)))  # type: ignore[no-any-return]


def build_cnn4(config: StudentConfig, mels: int) -> Cnn4:
    """Return the trial's student (97K parameters at width 1); any number of mels."""
    return Cnn4(width=config.width, embedding_dim=config.embedding_dim)


def build_cnn4_wide(config: StudentConfig, mels: int) -> Cnn4:
    """Return the trial's wide student (191K parameters at width 1); any number of mels."""
    return Cnn4(WIDE_CHANNELS, width=config.width, embedding_dim=config.embedding_dim)
