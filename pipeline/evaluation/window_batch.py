"""Windows of clips as every model hears them: 44.1 kHz for teachers, log-mel for students."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from pipeline.audio import clip_source, resampling
from pipeline.audio.windows import fit, frame_count, spread_starts
from pipeline.config import LogMelConfig
from pipeline.errors import AudioError
from pipeline.frontends.log_mel import LogMel

SAMPLE_RATE_HZ = 44_100


@dataclass(frozen=True)
class Windowing:
    """Windows of ``seconds``, at most ``maximum`` a clip, spread evenly; a short clip is followed by silence."""

    seconds: float
    maximum: int

    @property
    def samples(self) -> int:
        """Samples of a window at 44,100 Hz."""
        return frame_count(self.seconds, SAMPLE_RATE_HZ)


@dataclass
class WindowBatch:
    """Windows at 44,100 Hz; log-mels are computed once a frontend and kept.

    Attributes:
        waveforms: (windows, samples) at 44,100 Hz.
        clip: (windows,) row of the clip that each window is from.
    """

    waveforms: Float32[Tensor, "windows samples"]
    clip: Int[np.ndarray, " windows"]
    _log_mels: dict[LogMelConfig, Tensor] = field(default_factory=dict)
    _resampled: dict[int, Tensor] = field(default_factory=dict)

    def at_rate(self, rate_hz: int) -> Float32[Tensor, "windows resampled"]:
        """Return every window at ``rate_hz``, resampled as stage 1 does, once for all models of that rate."""
        if rate_hz == SAMPLE_RATE_HZ:
            return self.waveforms
        if rate_hz not in self._resampled:
            rows = [resampling.resample(row, SAMPLE_RATE_HZ, rate_hz) for row in self.waveforms.numpy()]
            self._resampled[rate_hz] = torch.from_numpy(np.stack(rows))
        return self._resampled[rate_hz]

    def log_mel(self, frontend: LogMel) -> Float32[Tensor, "windows mels frames"]:
        """Return the log-mel of every window: resampled as stage 1 does, then ``frontend``."""
        config = frontend.config
        if config not in self._log_mels:
            with torch.inference_mode():
                self._log_mels[config] = frontend(self.at_rate(config.sample_rate_hz))
        return self._log_mels[config]


@dataclass(frozen=True)
class UnusableClip:
    """A clip that could not be decoded: its row, and the reason (a key of ``decode.REASONS``)."""

    row: int
    path: str
    reason: str


def clip_windows(path: Path, windowing: Windowing) -> Float32[np.ndarray, "windows samples"]:
    """Return the windows of one sound file at 44,100 Hz.

    Raises:
        AudioError: the file cannot be used.
    """
    native, rate = clip_source.read(path)
    waveform = resampling.resample(native, rate, SAMPLE_RATE_HZ)
    starts = spread_starts(len(waveform), windowing.samples, windowing.maximum)
    return np.stack([fit(waveform[start:], windowing.samples) for start in starts])


def batches(
    paths: list[str], windowing: Windowing, unusable: list[UnusableClip], batch_windows: int = 32
) -> Iterator[WindowBatch]:
    """Yield the windows of all clips in order, about ``batch_windows`` at a time, whole clips together.

    Args:
        paths: of the clips; a clip's row is its place here.
        windowing: length and number of windows.
        unusable: gets an entry for each clip that cannot be decoded.
        batch_windows: a batch is given as soon as it holds this many.
    """
    held: list[np.ndarray] = []
    rows: list[int] = []
    for row, path in enumerate(paths):
        try:
            windows = clip_windows(Path(path), windowing)
        except AudioError as error:
            unusable.append(UnusableClip(row, path, error.reason))
            continue
        held.extend(windows)
        rows.extend([row] * len(windows))
        if len(held) >= batch_windows:
            yield WindowBatch(torch.from_numpy(np.stack(held)), np.array(rows))
            held, rows = [], []
    if held:
        yield WindowBatch(torch.from_numpy(np.stack(held)), np.array(rows))
