"""The students' log-mel frontend."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import LogMelConfig
from pipeline.errors import AudioError
from pipeline.frontends.mel_bank import mel_bank
from pipeline.frontends.split_spectrum import SplitPower
from pipeline.frontends.windowed_dft import padded_window


class LogMel(nn.Module):
    """Waveform to log-mel: Hann window, power of the DFT, mel triangles (or its bins as they are), logarithm.

    Frame ``k`` starts at ``k * hop_length`` of the (padded) signal; a window shorter than ``n_fft`` stands
    in its middle. Equal to torchaudio and librosa at the same constants; ``config.frames(samples)`` frames.

    Example:
        >>> LogMel(LogMelConfig())(torch.zeros(2, 36_782)).shape
        torch.Size([2, 64, 115])
    """

    window: Tensor
    bank: Tensor
    pair_bank: Tensor
    dft: Tensor

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.config = config
        window = padded_window(config)
        self.register_buffer("window", torch.from_numpy(window).float(), persistent=False)
        bank = mel_bank(config) if config.bands == "mel" else np.zeros((0, 0))
        self.register_buffer("bank", torch.from_numpy(bank.T.copy()).float(), persistent=False)
        # Rows doubled: squares of real and imaginary parts lie side by side, and the product adds them.
        self.register_buffer("pair_bank", self.bank.repeat_interleave(2, dim=0), persistent=False)
        self.exported = SplitPower(window, bank if config.bands == "mel" else None, config)

    def forward(self, waveform: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch mels frames"]:
        """Return the log-mel of each waveform.

        Args:
            waveform: samples at ``config.sample_rate_hz``.

        Raises:
            AudioError: too short for one frame, or for reflection padding.
        """
        return self.levels(self._padded(standardised(waveform) if self.config.standardise else waveform))

    def levels(self, padded: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch mels frames"]:
        """Return the log-mel of samples that are padded already: frame ``k`` starts at ``k * hop_length``."""
        config = self.config
        # ONNX Runtime's DFT takes three times as long as the same sums in two stages of matrix products.
        mel = self.exported(padded) if torch.compiler.is_exporting() else self._bands(padded).transpose(1, 2)
        if config.log_floor:
            mel = mel.clamp(min=config.log_floor)
        if config.log == "ln":
            level = torch.log(mel + config.log_offset)
        else:
            level = torch.log10(mel + config.log_offset) * (10.0 if config.log == "db" else 1.0)
        return level

    def _padded(self, waveform: Tensor) -> Tensor:
        config = self.config
        half = config.n_fft // 2
        if not torch.compiler.is_exporting():
            least = config.n_fft
            if config.center:
                least = half + 1 if config.pad_mode == "reflect" else 1
            if waveform.shape[-1] < least:
                raise AudioError(
                    "too_short",
                    "too few samples for one frame",
                    expected=f">= {least}",
                    got=waveform.shape[-1],
                )
        if not config.center:
            return waveform
        if config.pad_mode == "reflect":
            return F.pad(waveform[:, None], (half, half), mode="reflect")[:, 0]
        return F.pad(waveform, (half, half))

    def _bands(self, padded: Tensor) -> Tensor:
        """Return |DFT|**power of every frame in mel bands, or as it is: (batch, frames, bands)."""
        config, bank = self.config, None if self.config.bands == "linear" else self.bank
        frames = padded.unfold(-1, config.n_fft, config.hop_length) * self.window
        squares = torch.view_as_real(torch.fft.rfft(frames)).square()
        if config.power == 2.0 and bank is not None:
            # The product adds real and imaginary parts: a sum over pairs takes as long as the transform.
            return squares.flatten(-2) @ bank.repeat_interleave(2, dim=0)
        power = squares.sum(dim=-1)
        power = power if config.power == 2.0 else power.pow(config.power / 2.0)
        return power if bank is None else power @ bank


def standardised(waveform: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
    """Return each waveform less its mean, over its deviation; 1e-7 is added to the variance, so silence stays 0."""
    centred = waveform - waveform.mean(dim=1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-7)
