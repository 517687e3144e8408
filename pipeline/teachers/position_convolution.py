"""The convolutional positions of wav2vec 2.0 (Baevski et al., NeurIPS 2020) that BEATs adds to its tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class PositionConvolution(nn.Module):
    """A grouped convolution over tokens with weight norm over its taps, under weight norm's old names.

    float32 on the CPU goes through blocks of short Fourier transforms: a fiftieth of the direct sum's
    multiplications, which took 9 % of BEATs' time, and as exact.

    Args:
        width: channels.
        taps: kernel length, even; the last output is left out so that as many tokens come as went.
        groups: of channels.
    """

    weight_g: Tensor
    weight_v: Tensor
    bias: Tensor
    weight: Tensor | None
    spectrum: Tensor | None

    def __init__(self, width: int, taps: int, groups: int) -> None:
        super().__init__()
        self.taps, self.groups = taps, groups
        self.weight_g = nn.Parameter(torch.ones(1, 1, taps))
        self.weight_v = nn.Parameter(torch.zeros(width, width // groups, taps))
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight = self.spectrum = None

    def fold(self, device: torch.device, dtype: torch.dtype) -> None:
        """Multiply the weight norm out: weight = g v / |v|, the norm over all but the taps."""
        v = self.weight_v.detach().double()
        weight = self.weight_g.detach().double() * v / v.square().sum(dim=(0, 1), keepdim=True).sqrt()
        del self.weight_g, self.weight_v
        if device.type == "cpu" and dtype == torch.float32:
            # (frequencies * groups, inputs, outputs); the conjugate makes the product a correlation.
            spectrum = torch.fft.rfft(weight, n=2 * self.taps).conj().unflatten(0, (self.groups, -1))
            self.spectrum = spectrum.permute(3, 0, 2, 1).flatten(0, 1).to(torch.complex64).contiguous()
        else:
            self.weight = nn.Parameter(weight.float(), requires_grad=False)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Return the convolution, centred: output t sees the tokens t - taps / 2 to t + taps / 2 - 1."""
        if self.spectrum is not None:
            return self._by_transform(x)
        assert self.weight is not None
        made: Tensor = F.conv1d(
            x.transpose(1, 2), self.weight, self.bias, padding=self.taps // 2, groups=self.groups
        )
        return made[..., : x.shape[1]].transpose(1, 2).contiguous()

    def _by_transform(self, x: Tensor) -> Tensor:
        """Overlap-save: blocks of 2 taps, one block's hop of exact outputs each."""
        assert self.spectrum is not None
        (batch, tokens, width), taps = x.shape, self.taps
        blocks = -(-tokens // taps)
        padded = F.pad(x, (0, 0, taps // 2, (blocks + 1) * taps - tokens - taps // 2))
        heard = torch.fft.rfft(padded.unfold(1, 2 * taps, taps).permute(3, 0, 1, 2).contiguous(), dim=0)
        split = heard.reshape(taps + 1, batch * blocks, self.groups, -1).transpose(1, 2).flatten(0, 1)
        made = torch.bmm(split, self.spectrum).unflatten(0, (taps + 1, self.groups)).transpose(1, 2)
        joined = torch.fft.irfft(made.reshape(taps + 1, batch, blocks, width), n=2 * taps, dim=0)[:taps]
        whole: Tensor = joined.permute(1, 2, 0, 3).flatten(1, 2)[:, :tokens]
        return whole + self.bias
