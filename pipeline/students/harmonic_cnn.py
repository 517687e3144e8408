"""Harmonic CNN: filters whose bandwidth is learnt, each fundamental with its harmonics. EAsT's HCNN.

Won, Chun, Nieto, Serra, "Data-driven Harmonic Filters for Audio Representation Learning", ICASSP 2020, in the form
that Won et al. evaluate at SMC 2020. Published names and numerics. The filters stand on the power spectrum and are
trained, so the store holds the spectrum: in decibels, for float16 holds 14 decades of power no other way, and the
network takes the logarithm back. Its frontend::

    [embed.frontend]                # 16 kHz, window 512 as by default
    hop_length = 256
    pad_mode = "reflect"
    bands = "linear"
    log = "db"
    log_offset = 0.0
    log_floor = 1e-10
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.errors import ConfigError
from pipeline.students import options
from pipeline.students.base import round_channels
from pipeline.students.short_chunk_cnn import Features, TaggingOptions, TaggingStudent

CHANNELS = (128, 128, 128, 128, 256, 256, 256)
POOLS = ((2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 3), (2, 3))
# Layers without a shortcut: those that change the width.
PLAIN = (1, 5)
CHANNEL_DIVISOR = 4
LOWEST_MIDI = 24
# Bandwidth of hearing in Hz: 0.1079 f + 24.7 (Glasberg and Moore, 1990).
BANDWIDTH_SLOPE, BANDWIDTH_HZ = 0.1079, 24.7
FLOOR = 1e-10
_NEPERS_A_DB = math.log(10.0) / 10.0


class HarmonicOptions(TaggingOptions):
    """``[student.options]`` of the Harmonic CNN."""

    sample_rate_hz: int = Field(16_000, gt=0, description="of the frontend; fixes the bins' frequencies")
    harmonics: int = Field(6, ge=1, description="filters a note: at 1, 2, ... times its frequency")
    steps_a_semitone: int = Field(2, ge=1, description="notes a semitone")


def note_frequencies(sample_rate_hz: int, harmonics: int, steps_a_semitone: int) -> list[float]:
    """Return the fundamentals in Hz: C1 up to the note at half the sample rate over ``harmonics``, without it."""
    highest = round(69 + 12 * math.log2(sample_rate_hz / (2 * harmonics) / 440.0))
    count = (highest - LOWEST_MIDI) * steps_a_semitone
    if count < 1:
        raise ConfigError(
            "the harmonic filters have no note above C1 (32.7 Hz) whose harmonics are below half the sample rate",
            expected="fewer harmonics, or a higher sample rate",
            got=f"{harmonics} harmonics at {sample_rate_hz} Hz",
        )
    notes = (LOWEST_MIDI + step / steps_a_semitone for step in range(count))
    return [440.0 * 2 ** ((note - 69) / 12) for note in notes]


class HarmonicFilters(nn.Module):
    """Triangles around every harmonic of every note, on the power spectrum; one learnt number widens them all.

    Args:
        bins: of the spectrum, n_fft / 2 + 1.
        sample_rate_hz, harmonics, steps_a_semitone: see :class:`HarmonicOptions`.

    Attributes:
        levels: notes.
        bw_Q: bandwidth is that of hearing over this, shape (1,).
    """

    centres_hz: Tensor
    bins_hz: Tensor

    def __init__(self, bins: int, sample_rate_hz: int, harmonics: int, steps_a_semitone: int) -> None:
        super().__init__()
        notes = torch.tensor(
            note_frequencies(sample_rate_hz, harmonics, steps_a_semitone), dtype=torch.float64
        )
        centres = torch.cat([notes * number for number in range(1, harmonics + 1)])
        self.harmonics, self.levels = harmonics, len(notes)
        self.register_buffer("centres_hz", centres.float(), persistent=False)
        self.register_buffer("bins_hz", torch.linspace(0, sample_rate_hz // 2, bins), persistent=False)
        self.bw_Q = nn.Parameter(torch.ones(1))

    def bank(self) -> Float[Tensor, "bins filters"]:
        """Return the triangles; harmonic by harmonic, each with all its notes."""
        width = (BANDWIDTH_SLOPE * self.centres_hz + BANDWIDTH_HZ) / self.bw_Q
        slope = 2.0 * (self.bins_hz[:, None] - self.centres_hz) / width
        return torch.minimum(slope + 1.0, 1.0 - slope).clamp(min=0.0)

    def forward(
        self, spectrum_db: Float[Tensor, "batch 1 bins frames"]
    ) -> Float[Tensor, "batch harmonics levels frames"]:
        """Return the harmonic spectrum in dB, floor 1e-10, in float32 whatever the network runs in."""
        device = spectrum_db.device.type
        available = torch.amp.is_autocast_available(device) and not torch.compiler.is_exporting()
        if available and torch.is_autocast_enabled(device):
            # Powers span 14 decades: their sums want float32.
            with torch.autocast(device, enabled=False):
                return self._filtered(spectrum_db.float())
        return self._filtered(spectrum_db.float())

    def _filtered(self, spectrum_db: Tensor) -> Tensor:
        power = torch.exp(spectrum_db[:, 0] * _NEPERS_A_DB)
        filtered = power.transpose(1, 2) @ self.bank()
        level = torch.log(filtered.clamp(min=FLOOR)) / _NEPERS_A_DB
        harmonic: Tensor = level.unflatten(2, (self.harmonics, self.levels))
        return harmonic.permute(0, 2, 3, 1)


class PooledConvolution(nn.Module):
    """3x3 convolution, batch norm, ReLU, maximum pooling."""

    def __init__(self, channels: int, out_channels: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, 1, 1)
        self.bn = nn.BatchNorm2d(out_channels)
        self.pool = pool

    def forward(self, x: Float[Tensor, "batch channels levels frames"]) -> Tensor:
        """Return the pooled map."""
        return max_pool(torch.relu(self.bn(self.conv(x))), self.pool)


class PooledResidual(nn.Module):
    """Two 3x3 convolutions beside the identity, ReLU, maximum pooling."""

    def __init__(self, channels: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn_1 = nn.BatchNorm2d(channels)
        self.conv_2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn_2 = nn.BatchNorm2d(channels)
        self.pool = pool

    def forward(self, x: Float[Tensor, "batch channels levels frames"]) -> Tensor:
        """Return the pooled map."""
        main = self.bn_2(self.conv_2(torch.relu(self.bn_1(self.conv_1(x)))))
        return max_pool(torch.relu(main + x), self.pool)


def max_pool(x: Float[Tensor, "batch channels levels frames"], pool: tuple[int, int]) -> Tensor:
    """Return maxima over ``pool``; of a map that is smaller, the maximum of what there is. No value is below 0."""
    # In a traced graph the number of frames is symbolic, so the padding is an expression, never a branch.
    more = torch.sym_max(0, pool[1] - x.shape[3])
    return F.max_pool2d(F.pad(x, (0, more, 0, max(0, pool[0] - x.shape[2]))), pool)


class HarmonicCnn(TaggingStudent):
    """Harmonic CNN: 3.6M parameters at width 1 with 50 classes.

    Args:
        bins: of the spectrum, n_fft / 2 + 1.
        width: multiplies every channel count, rounded to the nearest multiple of 4 (at least 4).
        embedding_dim: width of the embedding; default the last channel count, 256.
        sample_rate_hz, harmonics, steps_a_semitone, features: see :class:`HarmonicOptions`.
        num_classes: 0 gives the embedding; more adds the published classifier.

    Input: the power spectrum in dB as stored ``(batch, 1, bins, frames)``, any number of frames. The published
    network wants 288; in shorter maps a pool takes the maximum of what is left.
    """

    def __init__(
        self,
        bins: int,
        *,
        width: float = 1.0,
        embedding_dim: int | None = None,
        sample_rate_hz: int = 16_000,
        harmonics: int = 6,
        steps_a_semitone: int = 2,
        features: Features = "dense",
        num_classes: int = 0,
    ) -> None:
        widths = [round_channels(width * channels, CHANNEL_DIVISOR) for channels in CHANNELS]
        super().__init__(widths[-1], embedding_dim, features, num_classes)
        self.bins, self.sample_rate_hz = bins, sample_rate_hz
        self.hstft = HarmonicFilters(bins, sample_rate_hz, harmonics, steps_a_semitone)
        self.hstft_bn = nn.BatchNorm2d(harmonics)
        before = harmonics
        for number, (after, pool) in enumerate(zip(widths, POOLS, strict=True), start=1):
            plain = number in PLAIN
            layer = PooledConvolution(before, after, pool) if plain else PooledResidual(after, pool)
            self.add_module(f"layer{number}", layer)
            before = after

    def forward(self, spectrum_db: Float[Tensor, "batch 1 bins frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, or the logits where there are classes."""
        x = self.hstft_bn(self.hstft(spectrum_db))
        for number in range(1, len(CHANNELS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return self.embedded(x)


def check_spectrum(config: StudentConfig, frontend: LogMelConfig) -> None:
    """Raise ConfigError unless ``frontend`` is a power spectrum in dB at the filters' sample rate."""
    own = options.parse(HarmonicOptions, config)
    wanted: dict[str, object] = {"bands": "linear", "log": "db", "log_offset": 0.0, "power": 2.0}
    wanted["sample_rate_hz"] = own.sample_rate_hz
    wrong = {key: getattr(frontend, key) for key in wanted if getattr(frontend, key) != wanted[key]}
    if wrong:
        raise ConfigError(
            "harmonic_cnn has filters of its own: it hears the power spectrum in dB",
            expected=", ".join(f"embed.frontend.{key} = {wanted[key]!r}" for key in wrong),
            got=", ".join(f"{key} = {value!r}" for key, value in wrong.items()),
            run="ossicle embed with that frontend (embed.more_frontends adds it to a store that is there)",
        )


@options.hears(check_spectrum)
@options.takes(HarmonicOptions)
def build_harmonic_cnn(config: StudentConfig, mels: int) -> HarmonicCnn:
    """Return the Harmonic CNN (3.6M parameters at width 1) on a spectrum of ``mels`` linear bins."""
    own = options.parse(HarmonicOptions, config)
    return HarmonicCnn(
        mels,
        width=config.width,
        embedding_dim=config.embedding_dim,
        sample_rate_hz=own.sample_rate_hz,
        harmonics=own.harmonics,
        steps_a_semitone=own.steps_a_semitone,
        features=own.features,
    )
