"""The mel partials that Resemblyzer's voice encoder hears (GE2E: Wan et al., ICASSP 2018, arXiv 1710.10467)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import LogMelConfig
from pipeline.frontends.mel_bank import mel_bank
from pipeline.frontends.windowed_dft import padded_window

SAMPLE_RATE_HZ = 16_000
N_FFT = 400
HOP_LENGTH = 160
MELS = 40
PARTIAL_FRAMES = 160
PARTIALS_A_SECOND = 1.3
PARTIAL_STEP_FRAMES = round(SAMPLE_RATE_HZ / PARTIALS_A_SECOND / HOP_LENGTH)
LEAST_COVERAGE = 0.75
TARGET_DBFS = -30.0

CONFIG = LogMelConfig(
    sample_rate_hz=SAMPLE_RATE_HZ, n_fft=N_FFT, window_length=N_FFT, hop_length=HOP_LENGTH, mels=MELS,
    min_hz=0.0, max_hz=8_000.0, mel_scale="slaney", mel_norm="slaney",
)  # fmt: skip


def partial_starts(samples: int) -> list[int]:
    """Return the first frame of every partial of a clip of ``samples`` samples, at least one.

    The last is dropped where less than three quarters of it are inside the clip.
    """
    frames = -(-(samples + 1) // HOP_LENGTH)
    starts = list(range(0, max(1, frames - PARTIAL_FRAMES + PARTIAL_STEP_FRAMES + 1), PARTIAL_STEP_FRAMES))
    coverage = (samples - starts[-1] * HOP_LENGTH) / (PARTIAL_FRAMES * HOP_LENGTH)
    return starts[:-1] if coverage < LEAST_COVERAGE and len(starts) > 1 else starts


class ResemblyzerFrontend(nn.Module):
    """Waveform at 16 kHz to partials of 160 frames of power mel, without a logarithm.

    Frame ``k`` is centred at sample ``160 k``, zeros outside the clip.
    """

    window: Tensor
    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.from_numpy(padded_window(CONFIG)).float(), persistent=False)
        bank = np.ascontiguousarray(mel_bank(CONFIG).T)
        self.register_buffer("bank", torch.from_numpy(bank).float(), persistent=False)

    @staticmethod
    def raised(waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
        """Return each clip raised to an RMS of -30 dBFS if it is below; silence stays silence."""
        rms = waveforms.square().mean(dim=1, keepdim=True).sqrt()
        gain = 10.0 ** (TARGET_DBFS / 20.0) / rms
        return waveforms * torch.where(rms > 0.0, gain, 1.0).clamp(min=1.0)

    def mel(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames 40"]:
        """Return the power mel of 1 + samples // 160 frames."""
        padded = F.pad(waveforms, (N_FFT // 2, N_FFT // 2))
        frames = padded.unfold(-1, N_FFT, HOP_LENGTH) * self.window
        return torch.view_as_real(torch.fft.rfft(frames)).square().sum(dim=-1) @ self.bank

    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch partials 160 40"]:
        """Return the partials of every clip, one every 77 frames; the clip is followed by zeros where needed."""
        samples = waveforms.shape[-1]
        starts = partial_starts(samples)
        needed = (starts[-1] + PARTIAL_FRAMES) * HOP_LENGTH
        mel = self.mel(F.pad(self.raised(waveforms), (0, max(0, needed - samples))))
        return torch.stack([mel[:, s : s + PARTIAL_FRAMES] for s in starts], dim=1)
