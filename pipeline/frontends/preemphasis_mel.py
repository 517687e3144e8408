"""The log-mel that PaSST, EfficientAT, CP-ResNet and CP-Mobile hear (Koutini et al., Interspeech 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import AudioError, ConfigError
from pipeline.frontends.mel_bank import triangles


@dataclass(frozen=True)
class PreemphasisMelConfig:
    """Constants of the frontend; the defaults are PaSST's and EfficientAT's.

    The published code writes ``max_hz`` as half the sample rate less half its training jitter: 15,000 Hz
    with a jitter of 2,000 Hz (PaSST, EfficientAT), 15,500 Hz with 1,000 Hz (CP-ResNet, CP-Mobile).

    Attributes:
        window_length: samples of the symmetric Hann window, centred in ``n_fft``.
        preemphasis: ``y[n] = x[n + 1] - preemphasis * x[n]``, one sample shorter than the input.
        log_offset: inside the natural logarithm.
        shift, scale: the output is ``(log_mel + shift) / scale``.
    """

    sample_rate_hz: int = 32_000
    n_fft: int = 1_024
    window_length: int = 800
    hop_length: int = 320
    mels: int = 128
    min_hz: float = 0.0
    max_hz: float = 15_000.0
    preemphasis: float = 0.97
    log_offset: float = 1e-5
    shift: float = 4.5
    scale: float = 5.0

    def frames(self, samples: int) -> int:
        """Return the number of frames of a clip of ``samples`` samples."""
        return 1 + (samples - 1) // self.hop_length

    def samples(self, frames: int) -> int:
        """Return the fewest samples that give ``frames`` frames (and enough for reflection padding)."""
        return max(1 + (frames - 1) * self.hop_length, self.n_fft // 2 + 2)


def kaldi_mel_bank(*, n_fft: int, sample_rate_hz: int, mels: int, min_hz: float, max_hz: float) -> np.ndarray:
    """Return Kaldi's (mels, n_fft // 2 + 1) float64 bank: triangles of peak 1, linear in mel.

    Mel is ``1127 ln(1 + f / 700)``; the Nyquist bin belongs to no band.

    Raises:
        ConfigError: the band is empty or reaches beyond half the sample rate.
    """
    if not 0.0 <= min_hz < max_hz <= sample_rate_hz / 2.0:
        raise ConfigError(
            "impossible mel band",
            expected=f"0 <= min_hz < max_hz <= {sample_rate_hz / 2.0:g}",
            got=f"{min_hz:g} .. {max_hz:g}",
        )

    def mel(hz: np.ndarray) -> np.ndarray:
        return np.asarray(1127.0 * np.log1p(hz / 700.0))

    edges = np.linspace(mel(np.array(min_hz)), mel(np.array(max_hz)), mels + 2)
    bins_hz = np.arange(n_fft // 2, dtype=np.float64) * (sample_rate_hz / n_fft)
    return np.pad(triangles(mel(bins_hz), edges), ((0, 0), (0, 1)))


class PreemphasisMel(nn.Module):
    """Waveform in [-1, 1] to normalised log-mel: pre-emphasis, power STFT, Kaldi mel bank, logarithm.

    Frame ``k`` is centred at sample ``k * hop_length``; the ends are mirrored.

    Example:
        >>> PreemphasisMel(PreemphasisMelConfig())(torch.zeros(2, 320_000)).shape
        torch.Size([2, 128, 1000])
    """

    window: Tensor
    bank: Tensor

    def __init__(self, config: PreemphasisMelConfig) -> None:
        super().__init__()
        self.config = config
        length = config.window_length
        window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / (length - 1))
        left = (config.n_fft - length) // 2
        window = np.pad(window, (left, config.n_fft - length - left))
        bank = kaldi_mel_bank(
            n_fft=config.n_fft, sample_rate_hz=config.sample_rate_hz, mels=config.mels,
            min_hz=config.min_hz, max_hz=config.max_hz,
        )  # fmt: skip
        self.register_buffer("window", torch.from_numpy(window).float(), persistent=False)
        self.register_buffer("bank", torch.from_numpy(bank).float(), persistent=False)

    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch mels frames"]:
        """Return the normalised log-mel of waveforms at ``config.sample_rate_hz``.

        Raises:
            AudioError: too short for reflection padding.
        """
        config, half = self.config, self.config.n_fft // 2
        if waveforms.shape[-1] < half + 2:
            raise AudioError(
                "too_short", "too few samples for one frame",
                expected=f">= {half + 2}", got=waveforms.shape[-1],
            )  # fmt: skip
        emphasised = waveforms[:, 1:] - config.preemphasis * waveforms[:, :-1]
        padded = F.pad(emphasised[:, None], (half, half), mode="reflect")[:, 0]
        frames = padded.unfold(-1, config.n_fft, config.hop_length) * self.window
        power = torch.view_as_real(torch.fft.rfft(frames)).square().sum(dim=-1)
        mel = self.bank @ power.transpose(1, 2)
        return (torch.log(mel + config.log_offset) + config.shift) / config.scale
