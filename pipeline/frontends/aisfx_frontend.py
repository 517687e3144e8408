"""The log-mel that the aisfx teacher was trained on (Essentia's mel bands; Ma and Lerch, ISMIR 2022)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.frontends.mel_bank import triangles

SAMPLE_RATE_HZ = 44_100
N_FFT = 2_048
HOP_LENGTH = 1_024
MELS = 96
LOG_SCALE = 10_000.0
LARGEST_LOG_MEL = 9.457798957824707
BLOCK_FRAMES = 100
BLOCK_HOP_FRAMES = 50


def frame_count(samples: int) -> int:
    """Return the number of frames of a clip of ``samples`` samples: ceil((samples + 1024) / 1024)."""
    return -(-(samples + HOP_LENGTH) // HOP_LENGTH)


def block_count(frames: int) -> int:
    """Return the number of blocks of ``frames`` frames, at least one; a partial last block is dropped."""
    return 1 + max(0, frames - BLOCK_FRAMES) // BLOCK_HOP_FRAMES


def essentia_mel_bank() -> np.ndarray:
    """Return the (96, 1025) float64 bank: triangles linear in mel (not in Hz), each of sum 1."""

    def mel(hz: np.ndarray) -> np.ndarray:
        return np.asarray(1127.01048 * np.log1p(hz / 700.0))

    edges = np.linspace(0.0, mel(np.array(SAMPLE_RATE_HZ / 2.0)), MELS + 2)
    bank = triangles(mel(np.arange(N_FFT // 2 + 1) * (SAMPLE_RATE_HZ / N_FFT)), edges)
    return np.asarray(bank / bank.sum(axis=1, keepdims=True))


class AisfxFrontend(nn.Module):
    """Waveform at 44.1 kHz to the scaled log-mel of aisfx.

    Frame ``k`` covers samples ``1024 k - 1024 .. 1024 k + 1023``, zeros outside the clip.
    """

    window: Tensor
    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(N_FFT) / (N_FFT - 1))
        self.register_buffer("window", torch.from_numpy(window).float(), persistent=False)
        self.register_buffer("bank", torch.from_numpy(essentia_mel_bank().T.copy()).float(), persistent=False)

    def log_mel(self, waveform: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames 96"]:
        """Return log10(10000 mel + 1) of the waveform clipped to [-1, 1]."""
        samples = waveform.shape[-1]
        right = frame_count(samples) * HOP_LENGTH - samples
        padded = F.pad(waveform.clamp(-1.0, 1.0), (HOP_LENGTH, right))
        frames = padded.unfold(-1, N_FFT, HOP_LENGTH) * self.window
        power = torch.view_as_real(torch.fft.rfft(frames)).square().sum(dim=-1)
        return torch.log10(LOG_SCALE * (power @ self.bank) + 1.0)

    def forward(self, waveform: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch blocks 100 96"]:
        """Return the network's input: scaled log-mel in blocks of 100 frames, hop 50.

        A partial last block is dropped; a clip shorter than one block gets zero frames after scaling.
        """
        scaled = self.log_mel(waveform) / LARGEST_LOG_MEL
        frames = scaled.shape[1]
        scaled = F.pad(scaled, (0, 0, 0, max(0, BLOCK_FRAMES - frames)))
        return scaled.unfold(1, BLOCK_FRAMES, BLOCK_HOP_FRAMES).transpose(2, 3)
