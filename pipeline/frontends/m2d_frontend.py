"""The log-mel that M2D hears (Niizumi et al., IEEE/ACM TASLP 2024): 80 Slaney bands, 100 frames a second."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import LogMelConfig
from pipeline.frontends.log_mel import LogMel

MELS = 80
LOG_OFFSET = torch.finfo(torch.float32).eps


def log_mel_config(sample_rate_hz: int) -> LogMelConfig:
    """Return the constants at 16 kHz (or, for the 32 kHz models, all lengths doubled): 25 ms each 10 ms."""
    return LogMelConfig(
        sample_rate_hz=sample_rate_hz,
        n_fft=sample_rate_hz // 40,
        window_length=sample_rate_hz // 40,
        hop_length=sample_rate_hz // 100,
        window="hann_periodic",
        center=True,
        pad_mode="reflect",
        mels=MELS,
        min_hz=50.0,
        max_hz=sample_rate_hz / 2.0,
        mel_scale="slaney",
        mel_norm="slaney",
        log="ln",
        log_offset=LOG_OFFSET,
    )


class M2dFrontend(nn.Module):
    """Waveform in [-1, 1] to natural log-mel, not yet normalised: its mean and deviation are the network's.

    A clip too short to be mirrored at its ends is followed by silence.
    """

    def __init__(self, sample_rate_hz: int = 16_000) -> None:
        super().__init__()
        config = log_mel_config(sample_rate_hz)
        self.log_mel = LogMel(config)
        self.least_samples = config.n_fft // 2 + 1

    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 80 frames"]:
        """Return ln(mel + 1.19e-7), 1 + samples // hop frames."""
        padded = F.pad(waveforms, (0, max(0, self.least_samples - waveforms.shape[-1])))
        return self.log_mel(padded)  # type: ignore[no-any-return]


def fill_patches(
    normalised: Float[Tensor, "batch mels frames"], *, chunk_frames: int, patch_frames: int
) -> Float[Tensor, "batch mels frames2"]:
    """Return the spectrogram with zeros on the right, so that the last chunk is whole patches.

    Where the chunk itself is not whole patches (1,001 frames), the last chunk is cut at its length.
    """
    frames = normalised.shape[-1]
    chunks = -(-frames // chunk_frames)
    padded = F.pad(normalised, (0, -(frames % chunk_frames) % patch_frames))
    return padded[..., : chunks * chunk_frames]
