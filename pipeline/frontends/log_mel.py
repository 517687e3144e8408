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
    dft: Tensor

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.config = config
        window = padded_window(config)
        self.register_buffer("window", torch.from_numpy(window).float(), persistent=False)
        bank = mel_bank(config) if config.bands == "mel" else np.zeros((0, 0))
        self.register_buffer("bank", torch.from_numpy(bank.T.copy()).float(), persistent=False)
        self.register_buffer("dft", torch.from_numpy(windowed_dft(window)).float(), persistent=False)

    def forward(self, waveform: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch mels frames"]:
        """Return the log-mel of each waveform.

        Args:
            waveform: samples at ``config.sample_rate_hz``.

        Raises:
            AudioError: too short for one frame, or for reflection padding.
        """
        padded = self._padded(standardised(waveform) if self.config.standardise else waveform)
        config = self.config
        mel = self._bands(padded)
        if config.log_floor:
            mel = mel.clamp(min=config.log_floor)
        if config.log == "ln":
            level = torch.log(mel + config.log_offset)
        else:
            level = torch.log10(mel + config.log_offset) * (10.0 if config.log == "db" else 1.0)
        return level.transpose(1, 2)

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
        if torch.compiler.is_exporting():
            # ONNX Runtime's DFT takes 3.8 ms a window where the same sums as one convolution take 1.1 ms.
            spectrum = F.conv1d(padded[:, None], self.dft[:, None], stride=config.hop_length).transpose(1, 2)
            bins = config.n_fft // 2 + 1
            power = spectrum[..., :bins].square() + spectrum[..., bins:].square()
        else:
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


def padded_window(config: LogMelConfig) -> np.ndarray:
    """Return the (n_fft,) float64 Hann window, zeros on both sides where ``window_length`` is shorter."""
    length = config.window_length
    period = length if config.window == "hann_periodic" else max(1, length - 1)
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / period)
    left = (config.n_fft - length) // 2
    return np.pad(window, (left, config.n_fft - length - left))


def windowed_dft(window: np.ndarray) -> np.ndarray:
    """Return the window times the DFT's cosines, then times its negative sines.

    Returns:
        (2 * (n_fft // 2 + 1), n_fft) float64.
    """
    n_fft = len(window)
    # The product modulo n_fft keeps the angle small, so that cos and sin are exact to the last bit.
    angle = 2.0 * np.pi * (np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) % n_fft) / n_fft
    return np.asarray(np.concatenate([np.cos(angle), -np.sin(angle)]) * window)
