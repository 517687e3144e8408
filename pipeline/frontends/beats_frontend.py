"""BEATs' normalised Kaldi filter bank (Chen et al., ICML 2023)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.frontends.kaldi_fbank import FbankConfig, KaldiFbank

SAMPLE_RATE_HZ = 16_000
MELS = 128
FULL_SCALE = 2.0**15
MEAN, STD = 15.41663, 6.55582

FBANK = FbankConfig(sample_rate_hz=SAMPLE_RATE_HZ, mels=MELS)


class BeatsFrontend(nn.Module):
    """(log-mel - mean) / (2 std) of waveforms scaled to 16-bit range; 25 ms frames, 10 ms apart."""

    def __init__(self) -> None:
        super().__init__()
        self.fbank = KaldiFbank(FBANK)

    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames 128"]:
        """Return the features of waveforms in [-1, 1] at 16 kHz."""
        return self.fbank(waveforms * FULL_SCALE).sub_(MEAN).div_(2 * STD)  # type: ignore[no-any-return]
