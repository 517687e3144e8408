"""A student that hears sound of any length: cut into windows, through its own log-mel, one embedding a window."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.audio import resampling
from pipeline.audio.windows import frame_count, spread_starts
from pipeline.config import LogMelConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.embedders import OnnxEmbedder, StudentEmbedder, run_embedder

STUDENT_VARIABLE = "OSSICLE_STUDENT"
WINDOW_SECONDS = 1.0
BATCH_WINDOWS = 64


class StudentWindows(nn.Module):
    """A run's student in torch, or an exported ONNX file on the CPU.

    Args:
        embedder: the student and its frontend.
        window_seconds: of a window, where the file does not fix it: best what the student was trained on.
        input_rate_hz: rate of the sound that is given; it is resampled to the student's own. None = the student's.

    Attributes:
        sample_rate_hz: of the sound that is given.
        embedding_dim: width of an embedding.
        window_samples: of a window, at the student's own rate.

    Raises:
        ConfigError: the window is shorter than one frame of the log-mel.
    """

    def __init__(
        self,
        embedder: StudentEmbedder | OnnxEmbedder,
        window_seconds: float = WINDOW_SECONDS,
        input_rate_hz: int | None = None,
    ) -> None:
        super().__init__()
        self.frontend = embedder.frontend
        self.network: nn.Module | None = None
        self.file: OnnxEmbedder | None = None
        config = self.frontend.config
        frames: int | str | None = None
        if isinstance(embedder, StudentEmbedder):
            self.network = embedder.student.eval().requires_grad_(requires_grad=False)
            self.embedding_dim = int(embedder.student.embedding_dim)
        else:
            self.file = embedder
            self.embedding_dim = int(embedder.session.get_outputs()[0].shape[-1])
            frames = embedder.session.get_inputs()[0].shape[-1]
        self.rate_hz = config.sample_rate_hz
        self.sample_rate_hz = self.rate_hz if input_rate_hz is None else input_rate_hz
        self.window_samples = (
            _samples(config, frames) if isinstance(frames, int) else frame_count(window_seconds, self.rate_hz)
        )
        if self.window_samples < config.n_fft:
            raise ConfigError(
                "a window holds not one frame of the log-mel", expected=f">= {config.n_fft / self.rate_hz:.3f} s",
                got=f"{self.window_samples / self.rate_hz:.3f} s",
            )  # fmt: skip

    def forward(self, windows: Float[Tensor, "windows samples"]) -> Float[Tensor, "windows dim"]:
        """Return the embedding of each window of ``window_samples`` samples at the student's own rate."""
        found = [self._embedded(part) for part in windows.split(BATCH_WINDOWS)]
        return torch.cat(found).to(windows.device)

    def tiled(self, audio: Float[Tensor, "sounds samples"]) -> Float[Tensor, "sounds dim"]:
        """Return the mean embedding of windows spread evenly over each sound; a short sound is followed by silence."""
        heard = self._heard(audio)
        starts = spread_starts(heard.shape[1], self.window_samples, heard.shape[1])
        padded = F.pad(heard, (0, max(0, self.window_samples - heard.shape[1])))
        windows = torch.stack([padded[:, start : start + self.window_samples] for start in starts], dim=1)
        embedding: Tensor = self(windows.flatten(0, 1))
        return embedding.reshape(len(audio), len(starts), -1).mean(dim=1)

    def sliding(self, audio: Float[Tensor, "sounds samples"], hop_seconds: float) -> tuple[Tensor, Tensor]:
        """Return embeddings of windows around the middle of every ``hop_seconds``, and those middles.

        Silence stands before and after each sound.

        Returns:
            (sounds, times, dim) embeddings and (times,) seconds, float64.
        """
        heard = self._heard(audio)
        hop = frame_count(hop_seconds, self.rate_hz)
        count = max(1, heard.shape[1] // hop)
        before = self.window_samples // 2 - hop // 2
        after = max(0, (count - 1) * hop + self.window_samples - before - heard.shape[1])
        # A hop longer than a window begins inside the sound: F.pad cuts where the width is negative.
        padded = F.pad(heard, (before, after))
        windows = padded.unfold(1, self.window_samples, hop)[:, :count]
        # Sound by sound, because every sound's windows at once are many times the sound.
        embedding = torch.stack([self(one) for one in windows])
        middles = (torch.arange(count, dtype=torch.float64) * hop + hop // 2) / self.rate_hz
        return embedding, middles.to(audio.device)

    def _heard(self, audio: Tensor) -> Tensor:
        if self.sample_rate_hz == self.rate_hz:
            return audio.float()
        rows = [
            resampling.resample(row, self.sample_rate_hz, self.rate_hz) for row in audio.float().cpu().numpy()
        ]
        return torch.from_numpy(np.stack(rows)).to(audio.device)

    @torch.no_grad()
    def _embedded(self, windows: Tensor) -> Tensor:
        log_mel = self.frontend(windows)
        if self.network is not None:
            return torch.as_tensor(self.network(log_mel)).float()
        assert self.file is not None
        return torch.from_numpy(self.file.embed_log_mels(log_mel.cpu().numpy()))


def open_student(
    reference: str | Path | None = None,
    window_seconds: float = WINDOW_SECONDS,
    accepted_rates_hz: tuple[int, ...] = (),
) -> StudentWindows:
    """Return the student in a run or export folder, or in an ONNX file of ``ossicle export``.

    Args:
        reference: the folder or file; None or empty = what the environment variable ``OSSICLE_STUDENT`` names.
        window_seconds: see :class:`StudentWindows`.
        accepted_rates_hz: rates that a kit gives, ascending; empty = any. A student of another rate takes the next
            higher one, resampled.

    Raises:
        ConfigError: no student is named, or its rate is above all that are accepted.
        MissingArtifactError: it is not there.
        WeightsError: it is damaged, or is no file of ours.
    """
    named = str(reference or "") or os.environ.get(STUDENT_VARIABLE, "")
    if not named:
        raise ConfigError(
            "no student is named", expected="a run folder, an export folder or an .onnx file",
            run=f"export {STUDENT_VARIABLE}=artifacts/run/NAME",
        )  # fmt: skip
    path = Path(named)
    embedder = OnnxEmbedder(path) if path.suffix == ".onnx" else run_embedder(path)
    rate_hz = embedder.frontend.config.sample_rate_hz
    higher = [rate for rate in accepted_rates_hz if rate >= rate_hz]
    if accepted_rates_hz and not higher:
        raise ConfigError(
            "the student hears a higher rate than the kit gives", expected=f"<= {max(accepted_rates_hz)} Hz",
            got=f"{rate_hz} Hz",
        )  # fmt: skip
    return StudentWindows(embedder, window_seconds, higher[0] if higher else None)


def _samples(config: LogMelConfig, frames: int) -> int:
    """Return the fewest samples that give ``frames`` frames."""
    return (frames - 1) * config.hop_length + (0 if config.center else config.n_fft)
