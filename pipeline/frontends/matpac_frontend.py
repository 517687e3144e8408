"""The log-mel that MATPAC hears (Quelennec et al., ICASSP 2025): M2D's constants, frames not centred.

Its window and mel bank are entries of the published checkpoints, under the names that torchaudio gave them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.frontends.m2d_frontend import LOG_OFFSET, log_mel_config
from pipeline.frontends.mel_bank import mel_bank
from pipeline.frontends.windowed_dft import padded_window

SAMPLE_RATE_HZ = 16_000
MEAN, DEVIATION = -7.056, 4.193
CONFIG = log_mel_config(SAMPLE_RATE_HZ).model_copy(update={"center": False})


class Spectrogram(nn.Module):
    """Power of the DFT of frames side by side from the first sample."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.from_numpy(padded_window(CONFIG)).float())

    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames 201"]:
        """Return |DFT|**2 of every frame."""
        frames = waveforms.unfold(-1, CONFIG.n_fft, CONFIG.hop_length) * self.window
        return torch.view_as_real(torch.fft.rfft(frames)).square().sum(dim=-1)


class MelScale(nn.Module):
    """Slaney mel bank."""

    fb: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fb", torch.from_numpy(mel_bank(CONFIG).T.copy()).float())

    def forward(self, power: Float[Tensor, "batch frames 201"]) -> Float[Tensor, "batch 80 frames"]:
        """Return the power of each band."""
        return (power @ self.fb).transpose(1, 2)


class MatpacFrontend(nn.Module):
    """Waveform at 16 kHz in [-1, 1] to natural log-mel; a clip shorter than a frame is followed by silence.

    The state dict holds ``MelSpectrogram.spectrogram.window`` and ``MelSpectrogram.mel_scale.fb``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.MelSpectrogram = nn.Sequential()
        self.MelSpectrogram.add_module("spectrogram", Spectrogram())
        self.MelSpectrogram.add_module("mel_scale", MelScale())

    def log_mel(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 80 frames"]:
        """Return ln(mel + 1.19e-7), 1 + (samples - 400) // 160 frames."""
        padded = F.pad(waveforms, (0, max(0, CONFIG.n_fft - waveforms.shape[-1])))
        return torch.log(self.MelSpectrogram(padded) + LOG_OFFSET)

    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 80 frames"]:
        """Return the normalised log-mel."""
        return (self.log_mel(waveforms) - MEAN) / DEVIATION
