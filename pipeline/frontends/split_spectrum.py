"""The power spectrum in mel bands as two convolution-sized matrix products: what exported frontends compute."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.frontends.constants import LogMelConstants
from pipeline.frontends.windowed_dft import best_taps, split_dft, windowed_dft


class SplitPower(nn.Module):
    """Padded samples to ``|DFT|**power`` in bands, by :class:`pipeline.frontends.windowed_dft.SplitDft`.

    One strided convolution over blocks of samples does framing, window and the first stage; one matrix product
    the second; one more the mel bands, its columns in the order in which the bins come out. Where no useful block
    divides both FFT and hop, frames are copied out first. Without bands the DFT stays in one stage.

    Args:
        window: (n_fft,) float64.
        bank: (bands, n_fft // 2 + 1), or None for the bins as they are.
        config: FFT length, hop, power.
    """

    first: Tensor
    second: Tensor | None
    bank: Tensor | None
    chosen: Tensor | None

    def __init__(self, window: np.ndarray, bank: np.ndarray | None, config: LogMelConstants) -> None:
        super().__init__()
        self.hop_length, self.power = config.hop_length, config.power
        bins = config.n_fft // 2 + 1
        # Bins as they are, in decibels, show the rounding of a quiet one beside a loud one: two stages round more.
        taps = config.n_fft if bank is None else best_taps(config.n_fft, config.hop_length)
        self.n_fft, self.phases = config.n_fft, config.n_fft // taps
        second: np.ndarray | None = None
        if self.phases == 1:
            first, order = windowed_dft(window), np.arange(bins)
        else:
            split = split_dft(window, taps)
            first, second, order = split.first, split.second, split.bins
        self.outputs = len(order)
        # A bin that comes out twice, once as its own conjugate, counts once.
        chosen = np.unique(order, return_index=True)[1]
        if bank is None:
            self._keep("bank", None)
            self.register_buffer("chosen", torch.from_numpy(chosen), persistent=False)
        else:
            spread = np.zeros((len(bank), len(order)))
            spread[:, chosen] = bank
            self._keep("bank", spread)
            self.register_buffer("chosen", None)
        self._keep("first", first.reshape(-1, 1, first.shape[-1]))
        self._keep("second", second)

    def _keep(self, name: str, value: np.ndarray | None) -> None:
        tensor = None if value is None else torch.from_numpy(value).float()
        self.register_buffer(name, tensor, persistent=False)

    def forward(self, padded: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch bands frames"]:
        """Return the bands of every frame."""
        batch, phases, stride = padded.shape[0], self.phases, self.hop_length // self.phases
        if self.hop_length % phases:
            frames = (padded.shape[1] - self.n_fft) // self.hop_length + 1
            starts = torch.arange(frames, device=padded.device) * self.hop_length
            padded = padded[:, (starts[:, None] + torch.arange(self.n_fft, device=padded.device)).reshape(-1)]
            stride = self.n_fft // phases
        blocks = padded[:, : padded.shape[1] // phases * phases].reshape(batch, -1, phases).transpose(1, 2)
        parts = F.conv1d(blocks, self.first, stride=stride, groups=phases)
        if self.second is not None:
            # From (phase, part, residue, frame) to (part, turn, residue, frame): no axis moves.
            parts = self.second @ parts.reshape(batch, 2 * phases, -1)
        squares = parts.square().reshape(batch, 2, self.outputs, -1)
        power = squares[:, 0] + squares[:, 1]
        if self.power != 2.0:
            power = power.pow(self.power / 2.0)
        if self.bank is not None:
            return self.bank @ power
        return power[:, self.chosen]
