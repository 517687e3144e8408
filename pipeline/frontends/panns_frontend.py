"""The log-mel that the PANNs hear (Kong et al., IEEE/ACM TASLP 2020), in decibels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import LogMelConfig
from pipeline.frontends.mel_bank import mel_bank
from pipeline.frontends.windowed_dft import windowed_dft

MELS = 64
MIN_HZ = 50.0
FLOOR = 1e-10


@dataclass(frozen=True)
class PannsFrontendConfig:
    """What differs between the published sample rates.

    Attributes:
        n_fft: samples of a frame and of its periodic Hann window.
        max_hz: upper edge of the mel bank (Slaney's scale, triangles of unit area).
    """

    sample_rate_hz: int
    n_fft: int
    hop_length: int
    max_hz: float


AT_32_KHZ = PannsFrontendConfig(sample_rate_hz=32_000, n_fft=1_024, hop_length=320, max_hz=14_000.0)
AT_16_KHZ = PannsFrontendConfig(sample_rate_hz=16_000, n_fft=512, hop_length=160, max_hz=8_000.0)


class PannsFrontend(nn.Module):
    """Waveform to log-mel: power STFT, Slaney mel bank, ``10 log10(max(mel, 1e-10))``.

    Frame ``k`` is centred at sample ``k * hop_length``; the ends are mirrored.

    Example:
        >>> PannsFrontend(AT_32_KHZ)(torch.zeros(2, 320_000)).shape
        torch.Size([2, 1001, 64])
    """

    window: Tensor
    bank: Tensor

    def __init__(self, config: PannsFrontendConfig) -> None:
        super().__init__()
        self.config = config
        window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(config.n_fft) / config.n_fft)
        bank = mel_bank(
            LogMelConfig(
                sample_rate_hz=config.sample_rate_hz,
                n_fft=config.n_fft,
                window_length=config.n_fft,
                hop_length=config.hop_length,
                mels=MELS,
                min_hz=MIN_HZ,
                max_hz=config.max_hz,
                mel_scale="slaney",
                mel_norm="slaney",
            )
        )
        self.register_buffer("window", torch.from_numpy(window).float(), persistent=False)
        self.register_buffer("bank", torch.from_numpy(bank.T.copy()).float(), persistent=False)

    @property
    def least_samples(self) -> int:
        """Fewest samples that can be mirrored at the ends."""
        return self.config.n_fft // 2 + 1

    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames 64"]:
        """Return the log-mel in dB of at least ``least_samples`` samples; 1 + samples // hop_length frames."""
        half = self.config.n_fft // 2
        padded = F.pad(waveforms[:, None], (half, half), mode="reflect")[:, 0]
        frames = padded.unfold(-1, self.config.n_fft, self.config.hop_length) * self.window
        power = torch.view_as_real(torch.fft.rfft(frames)).square().sum(dim=-1)
        return (power @ self.bank).clamp_(min=FLOOR).log10_().mul_(10.0)

    def published_constants(self) -> dict[str, Tensor]:
        """Return this frontend's constants as torchlibrosa stores them inside a PANNs checkpoint.

        Returns:
            The windowed DFT as two convolutions (bins, 1, n_fft) and the mel bank (bins, 64), float32.
        """
        bins = self.config.n_fft // 2 + 1
        dft = torch.from_numpy(windowed_dft(self.window.double().cpu().numpy())).float()[:, None]
        return {
            "spectrogram_extractor.stft.conv_real.weight": dft[:bins],
            "spectrogram_extractor.stft.conv_imag.weight": dft[bins:],
            "logmel_extractor.melW": self.bank.cpu(),
        }
