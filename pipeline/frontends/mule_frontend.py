"""The standardised log-mel slices that MULE hears (McCallum et al., ISMIR 2022, arXiv 2210.03799)."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import LogMelConfig
from pipeline.frontends.mel_bank import mel_bank
from pipeline.frontends.windowed_dft import padded_window

SAMPLE_RATE_HZ = 16_000
N_FFT = 2_048
WINDOW_LENGTH = 400
HOP_LENGTH = 160
MELS = 96
LOG_SCALE = 10_000.0
SLICE_FRAMES = 300
SLICE_HOP_FRAMES = 200
STD_FLOOR = 0.01
LEAST_SAMPLES = N_FFT // 2 + 1
# The window stands in the middle of the frame: only these samples of it are not zero.
MARGIN = (N_FFT - WINDOW_LENGTH) // 2

CONFIG = LogMelConfig(
    sample_rate_hz=SAMPLE_RATE_HZ, n_fft=N_FFT, window_length=WINDOW_LENGTH, hop_length=HOP_LENGTH, mels=MELS,
    min_hz=0.0, max_hz=8_000.0, mel_scale="htk", mel_norm="none",
)  # fmt: skip


def slice_starts(frames: int) -> list[int]:
    """Return the first frame of every slice of a clip of ``frames`` frames, at least one.

    Slices are centred at frames 200, 400, ... and moved inside the clip where they reach out of it.
    """
    half = SLICE_FRAMES // 2
    if frames < SLICE_FRAMES:
        return [0]
    return [
        min(max(c, half), frames - half) - half for c in range(SLICE_HOP_FRAMES, frames, SLICE_HOP_FRAMES)
    ]


def windowed_dft() -> Float[Tensor, "two_bins 2048"]:
    """Return the windowed DFT as the converted checkpoint has it: cosines, then negative sines.

    Its angles are float32 products, up to 2.4e-4 off; MULE's published features carry that, so ours must.
    """
    bins = torch.arange(N_FFT // 2 + 1)[:, None]
    angle = 2.0 * math.pi * bins * torch.arange(N_FFT) / N_FFT
    window = torch.from_numpy(padded_window(CONFIG)).float()
    return torch.cat([torch.cos(angle) * window, -torch.sin(angle) * window])


class MuleFrontend(nn.Module):
    """Waveform at 16 kHz to log-mel slices of zero mean and unit deviation.

    Frame ``k`` is centred at sample ``160 k``, the ends mirrored; every mel band's triangle has unit L2 norm.
    """

    dft: Tensor
    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        bank = mel_bank(CONFIG)
        bank /= np.linalg.norm(bank, axis=1, keepdims=True)
        kernels = windowed_dft()[:, MARGIN : MARGIN + WINDOW_LENGTH]
        self.register_buffer("dft", kernels.T.contiguous(), persistent=False)
        self.register_buffer("bank", torch.from_numpy(bank.T.copy()).float(), persistent=False)

    def log_mel(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 96 frames"]:
        """Return log10(10000 mel + 1); fewer than 1,025 samples are followed by silence."""
        padded = F.pad(waveforms, (0, max(0, LEAST_SAMPLES - waveforms.shape[-1])))
        padded = F.pad(padded[:, None], (N_FFT // 2, N_FFT // 2), mode="reflect")[:, 0]
        frames = padded[:, MARGIN : padded.shape[-1] - MARGIN].unfold(-1, WINDOW_LENGTH, HOP_LENGTH)
        cosines, sines = (frames @ self.dft).chunk(2, dim=-1)
        power = cosines.square().addcmul_(sines, sines)
        return (power @ self.bank).mul_(LOG_SCALE).add_(1.0).log10_().transpose(1, 2)

    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch slices 96 300"]:
        """Return the slices of every clip.

        A clip of fewer than 300 frames is mirrored at its end, or its last frame repeated where the mirror
        image would be too short.
        """
        mel = self.log_mel(waveforms)
        frames = mel.shape[-1]
        short = max(0, SLICE_FRAMES - frames)
        if short:
            mel = F.pad(mel, (0, short), mode="reflect" if short < frames else "replicate")
        slices = torch.stack([mel[..., s : s + SLICE_FRAMES] for s in slice_starts(frames)], dim=1)
        slices = slices - slices.mean(dim=(2, 3), keepdim=True)
        return slices / slices.std(dim=(2, 3), correction=0, keepdim=True).clamp(min=STD_FLOOR)

    def published_constants(self) -> dict[str, Tensor]:
        """Return the constants that the converted checkpoint stores: the windowed DFT and the mel bank."""
        cosines, sines = windowed_dft()[:, None].chunk(2)
        return {
            "frontend.mel_fb": self.bank.T.cpu(),
            "frontend.stft.fwd_real": cosines,
            "frontend.stft.fwd_imag": sines,
        }
