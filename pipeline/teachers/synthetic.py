"""A tiny deterministic teacher without a weights file: for tests and fixture stores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import Section, TeacherConfig, digest
from pipeline.errors import ConfigError, WeightsError, near_matches
from pipeline.teachers import options
from pipeline.teachers.base import EMBEDDING_ONLY

CODE_VERSION = "tiny/1"
FRAMES = 8
FRAME_SAMPLES = 256
BANDS = 16


class TinyTeacher:
    """Log-spectrum of 8 short frames in 16 bands, its mean and deviation projected at random: 24-d.

    About 50 kFLOP a window. The projection comes from a seeded generator; the values depend on gain and
    spectrum, so that a student can learn them and a test can tell clips apart.
    """

    name = "tiny"
    sample_rate_hz = 44_100
    window_samples = 101_376
    embedding_dim = 24
    outputs = ("embedding", "frames", "layer.0", "logits")
    licence = "CC0-1.0"
    citation = "none: a seeded random projection"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        generator = np.random.default_rng([seed, BANDS, self.embedding_dim])
        draw = generator.standard_normal((2 * BANDS, self.embedding_dim)) / np.sqrt(2 * BANDS)
        self.projection = torch.from_numpy(draw).float()
        period = 2.0 * np.pi * np.arange(FRAME_SAMPLES) / FRAME_SAMPLES
        self.window = torch.from_numpy(0.5 - 0.5 * np.cos(period)).float()
        edges = np.unique(np.geomspace(1, FRAME_SAMPLES // 2 + 1, BANDS + 8).round().astype(int))[
            -BANDS - 1 :
        ]
        bank = np.zeros((FRAME_SAMPLES // 2 + 1, BANDS))
        for band, (low, high) in enumerate(itertools.pairwise(edges)):
            bank[low:high, band] = 1.0 / (high - low)
        self.bank = torch.from_numpy(bank).float()

    def digest(self) -> str:
        """Return the digest of code version and seed."""
        return digest({"code": CODE_VERSION, "seed": self.seed, "window_samples": self.window_samples})

    @torch.inference_mode()
    def embed(
        self, waveforms: Float[Tensor, "batch samples"], outputs: Sequence[str] = EMBEDDING_ONLY
    ) -> dict[str, Tensor]:
        """Return the asked outputs; frames stand evenly over the whole waveform.

        ``embedding`` (batch, 24); ``frames`` (batch, 8, 16), the log-spectra; ``layer.0`` (batch, 16), their
        mean; ``logits`` (batch, 5), the embedding's first five dimensions.

        Raises:
            ConfigError: an output that it does not have.
        """
        for name in outputs:
            if name not in self.outputs:
                raise ConfigError(
                    f"teacher 'tiny' has no output {name!r}",
                    expected=near_matches(name, self.outputs),
                    got=name,
                )
        if len(waveforms) == 0:  # the FFT refuses an empty batch
            one = self.embed(waveforms.new_zeros(1, FRAME_SAMPLES), outputs)
            return {name: value[:0] for name, value in one.items()}
        padded = F.pad(waveforms, (0, max(0, FRAME_SAMPLES - waveforms.shape[-1])))
        starts = np.linspace(0, padded.shape[-1] - FRAME_SAMPLES, FRAMES).astype(int)
        windows = torch.stack([padded[:, s : s + FRAME_SAMPLES] for s in starts], dim=1) * self.window
        power = torch.view_as_real(torch.fft.rfft(windows)).square().sum(dim=-1)
        level = torch.log(power @ self.bank + 1e-4)
        summary = torch.cat([level.mean(dim=1), level.std(dim=1, correction=0)], dim=1)
        embedding = summary @ self.projection
        made = {
            "embedding": embedding,
            "frames": level,
            "layer.0": level.mean(dim=1),
            "logits": embedding[:, :5],
        }
        return {name: made[name] for name in outputs}


class TinyOptions(Section):
    """The tiny teacher's own keys."""

    seed: int = Field(0, ge=0, description="of the projection: another seed is another teacher")


def build_tiny(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> TinyTeacher:
    """Return the tiny teacher; it has no weights and runs on the CPU in float32.

    Raises:
        WeightsError: a weights file was given.
        ConfigError: another device or dtype was asked for, or an option that it does not have.
    """
    if weights is not None:
        raise WeightsError("teacher 'tiny' has no weights file", got=str(weights))
    if config.device != "cpu" or config.dtype == "bfloat16":
        raise ConfigError(
            "teacher 'tiny' runs on the CPU in float32", got=f"device {config.device}, dtype {config.dtype}"
        )
    return TinyTeacher(options.parse(TinyOptions, "tiny", config.options).seed)
