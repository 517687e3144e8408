"""The log-mel that PaSST hears (Koutini et al., Interspeech 2022): 128 bands, 100 frames a second."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.frontends.preemphasis_mel import PreemphasisMel, PreemphasisMelConfig

PASST = PreemphasisMelConfig()


class PasstFrontend(PreemphasisMel):
    """PaSST's frontend; a clip shorter than one patch is followed by silence.

    Args:
        patch_frames: frames of the network's patch.
    """

    def __init__(self, patch_frames: int = 16) -> None:
        super().__init__(PASST)
        self.least_samples = PASST.samples(patch_frames)

    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 128 frames"]:
        """Return (ln(mel + 1e-5) + 4.5) / 5 of waveforms at 32 kHz; 1 + (samples - 1) // 320 frames."""
        return super().forward(F.pad(waveforms, (0, max(0, self.least_samples - waveforms.shape[-1]))))
