"""wav2vec 2.0's input: the waveform at 16 kHz, each clip to zero mean and unit variance (Baevski et al., 2020)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE_RATE_HZ = 16_000
VARIANCE_OFFSET = 1e-7
# The seven convolutions together span 400 samples and step by 320.
LEAST_SAMPLES = 400
HOP_LENGTH = 320


class Wav2Vec2Frontend(nn.Module):
    """``(x - mean) / sqrt(variance + 1e-7)`` a clip; one shorter than a frame is then followed by zeros.

    Example:
        >>> Wav2Vec2Frontend()(torch.zeros(2, 48_000)).shape
        torch.Size([2, 48000])
    """

    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples2"]:
        """Return the normalised waveforms, at least 400 samples each."""
        centred = waveforms - waveforms.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        normalised = centred * torch.rsqrt(variance + VARIANCE_OFFSET)
        return F.pad(normalised, (0, max(0, LEAST_SAMPLES - normalised.shape[1])))
