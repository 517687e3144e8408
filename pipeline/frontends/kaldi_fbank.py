"""Kaldi's log-mel filter bank (Povey et al., The Kaldi Speech Recognition Toolkit, ASRU 2011), batched.

The arithmetic before the transform keeps Kaldi's order, operation by operation: quiet mel bands are differences
of large numbers, and any other order moves them by more than 1e-4.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.frontends.kaldi_compiled import CompiledPasses, compiled
from pipeline.section import Section

if TYPE_CHECKING:
    from pipeline.frontends.kaldi_mels import MelTiles

LOG_FLOOR = torch.finfo(torch.float32).eps
# Frames a pass: on the CPU few enough for the caches, elsewhere enough to fill the device.
_CPU_FRAMES = 1 << 10
_DEVICE_FRAMES = 1 << 16
# Where the bands are cut into groups, each multiplied with the bins that it touches: high bands touch many.
_CUTS = (0.0, 0.375, 0.625, 0.75, 0.875, 1.0)

Window = Literal["povey", "hanning", "hamming", "blackman", "rectangular"]


class FbankConfig(Section):
    """Every constant of the filter bank, under Kaldi's meanings; the defaults are BEATs' (128 mels, Povey)."""

    sample_rate_hz: int = Field(16_000, gt=0)
    mels: int = Field(128, gt=3, description="mel bands")
    frame_length_ms: float = Field(25.0, gt=0)
    frame_shift_ms: float = Field(10.0, gt=0)
    window: Window = Field(
        "povey", description="symmetric; povey = hann ** 0.85, as BEATs; AST and EAT: hanning"
    )
    preemphasis: float = Field(0.97, ge=0, le=1)
    remove_dc_offset: bool = Field(True, description="subtract each frame's mean")
    snip_edges: bool = Field(
        True, description="only frames that lie wholly in the signal; else one a shift, the ends mirrored"
    )
    round_to_power_of_two: bool = Field(True, description="FFT length; else the frame's own")
    low_hz: float = Field(20.0, ge=0)
    high_hz: float = Field(0.0, description="0 or less: so far from half the sample rate")
    use_power: bool = Field(True, description="power spectrum; else magnitude")

    @property
    def frame_samples(self) -> int:
        """Samples of a frame."""
        return int(self.sample_rate_hz * self.frame_length_ms * 0.001)

    @property
    def shift_samples(self) -> int:
        """Samples between two frames."""
        return int(self.sample_rate_hz * self.frame_shift_ms * 0.001)

    @property
    def n_fft(self) -> int:
        """Length of the transform in samples."""
        return (
            1 << (self.frame_samples - 1).bit_length() if self.round_to_power_of_two else self.frame_samples
        )

    @property
    def upper_hz(self) -> float:
        """Upper edge of the highest band."""
        return self.high_hz if self.high_hz > 0 else self.high_hz + 0.5 * self.sample_rate_hz

    @model_validator(mode="after")
    def _possible(self) -> FbankConfig:
        if min(self.frame_samples, self.shift_samples) < 1:
            raise ValueError("frame_length_ms and frame_shift_ms are less than one sample")
        if self.n_fft % 2:
            raise ValueError(f"a frame of {self.frame_samples} samples is odd: set round_to_power_of_two")
        if not self.low_hz < self.upper_hz <= 0.5 * self.sample_rate_hz:
            raise ValueError(
                f"{self.low_hz:g} to {self.upper_hz:g} Hz is no band below half of {self.sample_rate_hz} Hz"
            )
        return self

    def frames(self, samples: int) -> int:
        """Return the number of frames of ``samples`` samples."""
        if self.snip_edges:
            return max(0, 1 + (samples - self.frame_samples) // self.shift_samples)
        return (samples + self.shift_samples // 2) // self.shift_samples


def analysis_window(config: FbankConfig) -> Float[Tensor, " frame"]:
    """Return the symmetric analysis window of ``config``, in Kaldi's definitions."""
    size = config.frame_samples
    if config.window == "rectangular":
        return torch.ones(size)
    if config.window == "hamming":
        return torch.hamming_window(size, periodic=False, alpha=0.54, beta=0.46)
    if config.window == "blackman":
        phase = torch.arange(size) * (2 * math.pi / max(1, size - 1))
        return 0.42 - 0.5 * torch.cos(phase) + 0.08 * torch.cos(2 * phase)
    hann = torch.hann_window(size, periodic=False)
    return hann.pow(0.85) if config.window == "povey" else hann


def mel_weights(config: FbankConfig) -> Float[Tensor, "bins mels"]:
    """Return the triangles, linear in mel (1127 ln(1 + f / 700)) and of peak 1; the Nyquist bin has no weight.

    In float32, as Kaldi computes them: the published networks were trained on those roundings.
    """
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (config.low_hz, config.upper_hz))
    width = (high - low) / (config.mels + 1)
    band = torch.arange(config.mels)
    left, centre, right = (low + (band + step) * width for step in (0, 1.0, 2.0))
    bins_hz = config.sample_rate_hz / config.n_fft * torch.arange(config.n_fft / 2)
    mel = (1127.0 * (1.0 + bins_hz / 700.0).log())[:, None]
    rising = (mel - left) / (centre - left)
    falling = (right - mel) / (right - centre)
    weights = torch.minimum(rising, falling).clamp_(min=0.0)
    return torch.cat([weights, weights.new_zeros(1, config.mels)])


def mirrored(waveforms: Float[Tensor, "batch samples"], config: FbankConfig) -> Float[Tensor, "batch longer"]:
    """Return the signal with its ends mirrored, again and again where it is short, as far as frames reach."""
    samples = waveforms.shape[-1]
    first = config.shift_samples // 2 - config.frame_samples // 2
    reach = (config.frames(samples) - 1) * config.shift_samples + config.frame_samples
    index = torch.arange(first, first + reach, device=waveforms.device).remainder(2 * samples)
    return waveforms[:, torch.where(index < samples, index, 2 * samples - 1 - index)]


class KaldiFbank(nn.Module):
    """The natural logarithm of Kaldi's mel filter bank, of a whole batch at once; no dither, no energy column.

    Equal to ``torchaudio.compliance.kaldi.fbank`` of each clip to float32 rounding of the last operations.

    Args:
        config: every constant.
    """

    window: Tensor

    def __init__(self, config: FbankConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FbankConfig()
        self.register_buffer("window", analysis_window(config), persistent=False)
        # Rows doubled: the squares of real and imaginary parts lie side by side, and the product adds them.
        weights = mel_weights(config).repeat_interleave(2 if config.use_power else 1, dim=0)
        self._groups = _groups(weights)
        for number, (bands, bins) in enumerate(self._groups):
            self.register_buffer(f"weights{number}", weights[bins, bands].contiguous(), persistent=False)

    @torch.no_grad()
    def forward(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames mels"]:
        """Return log-mels; 0 frames of a signal shorter than one frame where ``snip_edges`` holds.

        Args:
            waveforms: at ``config.sample_rate_hz``, in the range that the network was trained on.
        """
        config, (batch, samples) = self.config, waveforms.shape
        frames = config.frames(samples)
        log_mels = waveforms.new_empty(batch, frames, config.mels)
        if batch == 0 or frames == 0:
            return log_mels
        if not config.snip_edges:
            waveforms = mirrored(waveforms, config)
        waveforms = waveforms.contiguous()
        framed = waveforms.unfold(1, config.frame_samples, config.shift_samples)
        is_cpu = waveforms.device.type == "cpu"
        passes = compiled() if is_cpu and waveforms.dtype == torch.float32 else None
        at_once = _CPU_FRAMES if is_cpu else _DEVICE_FRAMES
        clips, cuts = max(1, at_once // frames), -(-frames // at_once)
        length = -(-frames // cuts)
        padded = waveforms.new_zeros(min(batch, clips) * length, config.n_fft)
        scratches: dict[int, _Scratch] = {}
        for row in range(0, batch, clips):
            some = slice(row, row + clips)
            for start in range(0, frames, length):
                part = some, slice(start, start + length)
                made = log_mels[part].view(-1, config.mels)
                if passes is None:
                    self._block(framed[part], padded[: len(made)], made, scratches)
                else:
                    self._frame_compiled(waveforms[some], framed[part], start, padded, passes)
                    self._mels_compiled(padded[: len(made)], made, passes)
        return log_mels

    def _block(
        self, framed: Tensor, padded: Tensor, log_mels: Tensor, scratches: dict[int, _Scratch]
    ) -> None:
        """Write ``log_mels`` of (clips, frames, samples), a part of one clip or several whole ones."""
        count = len(padded)
        if count not in scratches:
            scratches[count] = self._scratch(count)
        scratch = scratches[count]
        self._frame(framed, scratch, padded)
        spectrum = torch.fft.rfft(padded)
        pairs = torch.view_as_real(spectrum).flatten(1)
        values = pairs.square_() if self.config.use_power else spectrum.abs()
        for bins, weights, mels in scratch.products:
            torch.mm(values[:, bins], weights, out=mels)
        torch.log(scratch.mels.clamp_(min=LOG_FLOOR), out=log_mels)

    def _frame(self, framed: Tensor, scratch: _Scratch, padded: Tensor) -> None:
        """Write the frames into the first columns of ``padded``, whole arrays at a time."""
        wide = scratch.wide
        frames, flat = wide[:, 1:].view(framed.shape), wide.view(-1)
        if self.config.remove_dc_offset:
            torch.sub(framed, framed.mean(dim=-1, keepdim=True), out=frames)
        else:
            frames.copy_(framed)
        if self.config.preemphasis:
            # The first sample stands twice, as its own predecessor; one flat difference then serves all frames.
            wide[:, 0].copy_(wide[:, 1])
            torch.mul(flat[:-1], self.config.preemphasis, out=scratch.before)
            flat[1:].sub_(scratch.before)
        torch.mul(wide[:, 1:], self.window, out=padded[:, : self.config.frame_samples])

    def _frame_compiled(
        self, waveforms: Tensor, framed: Tensor, start: int, padded: Tensor, passes: CompiledPasses
    ) -> None:
        """Write the same frames, to the bit, in one pass: of ``waveforms`` from frame ``start`` on."""
        config, (clips, frames, size) = self.config, framed.shape
        if not config.remove_dc_offset:
            means = framed.new_zeros(clips * frames)
        elif _sums_as_torch(size):
            means = framed.new_empty(0)
        else:
            means = framed.mean(dim=-1).flatten()
        passes.write_frames(
            waveforms.detach().numpy(), start, config.shift_samples, frames, means.numpy(),
            self.window.numpy(), np.float32(config.preemphasis), padded.numpy(),
        )  # fmt: skip

    def _mels_compiled(self, padded: Tensor, log_mels: Tensor, passes: CompiledPasses) -> None:
        """Write ``log_mels`` of frames; torch's transform: another's rounding moves the quietest bands by 1e-3."""
        pairs = torch.view_as_real(torch.fft.rfft(padded)).flatten(1)
        passes.write_mels(
            pairs.numpy(), *self._tiles, np.float32(LOG_FLOOR), self.config.use_power, log_mels.numpy()
        )
        log_mels.log_()

    @functools.cached_property
    def _tiles(self) -> MelTiles:
        from pipeline.frontends.kaldi_mels import mel_tiles

        return mel_tiles(mel_weights(self.config).numpy())

    def _scratch(self, count: int) -> _Scratch:
        """Return what passes over whole arrays of ``count`` frames write."""
        wide = self.window.new_empty(count, self.config.frame_samples + 1)
        mels = self.window.new_empty(count, self.config.mels)
        return _Scratch(
            wide=wide,
            before=self.window.new_empty(wide.numel() - 1),
            mels=mels,
            products=[
                (bins, self.get_buffer(f"weights{number}"), mels[:, bands])
                for number, (bands, bins) in enumerate(self._groups)
            ],
        )


class _Scratch(NamedTuple):
    """Arrays that every pass of one size writes anew: making them, and views of them, takes as long as a product."""

    wide: Tensor
    before: Tensor
    mels: Tensor
    products: list[tuple[slice, Tensor, Tensor]]


def _groups(weights: Tensor) -> list[tuple[slice, slice]]:
    """Return bands side by side and the rows of ``weights`` that they touch: four fifths of it are zeros."""
    edges = sorted({round(cut * weights.shape[1]) for cut in _CUTS})
    found = []
    for start, stop in itertools.pairwise(edges):
        rows = weights[:, start:stop].any(dim=1).nonzero().flatten().tolist() or [0]
        found.append((slice(start, stop), slice(rows[0], rows[-1] + 1)))
    return found


@functools.cache
def _sums_as_torch(size: int) -> bool:
    """Return whether the compiled frames' own means of ``size`` samples are torch's to the bit, tried on noise.

    Torch's order of a sum depends on its version, the processor and the length, and another order of the same
    sum would move the quietest bands by 1e-3.
    """
    passes, frames = compiled(), 256
    noise = torch.randn(1, frames + size - 1, generator=torch.Generator().manual_seed(0)).add_(3.0)
    centred, framed = torch.zeros(frames, size), noise.unfold(1, size, 1)
    if passes is not None:
        none, flat = np.empty(0, np.float32), np.ones(size, np.float32)
        passes.write_frames(noise.numpy(), 0, 1, frames, none, flat, np.float32(0.0), centred.numpy())
    return torch.equal(centred, (framed - framed.mean(dim=-1, keepdim=True))[0])
