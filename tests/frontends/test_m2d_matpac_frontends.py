"""M2D's and MATPAC's log-mels against torchaudio's, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.frontends.m2d_frontend import M2dFrontend, fill_patches
from pipeline.frontends.matpac_frontend import MatpacFrontend
from tests.frontends import torchaudio_reference

EPSILON = 1.1920928955078125e-07


def reference(samples: Tensor, rate: int, *, center: bool) -> Tensor:
    transform = torchaudio_reference.load().MelSpectrogram(
        sample_rate=rate, n_fft=rate // 40, win_length=rate // 40, hop_length=rate // 100, f_min=50.0,
        f_max=rate / 2, n_mels=80, power=2.0, center=center, pad_mode="reflect", norm="slaney",
        mel_scale="slaney",
    ).double()  # fmt: skip
    return torch.log(transform(samples) + EPSILON)


def noise(samples: int) -> Tensor:
    return torch.randn(2, samples, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.1


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_m2d(rate: int) -> None:
    samples = noise(9_123)
    got = M2dFrontend(rate)(samples.float())
    assert got.shape == (2, 80, 1 + 9_123 * 100 // rate)
    torch.testing.assert_close(got.double(), reference(samples, rate, center=True), atol=2e-3, rtol=0)
    assert (got - reference(samples, rate, center=True)).abs().mean() < 2e-5


def test_matpac() -> None:
    samples, frontend = noise(9_123), MatpacFrontend()
    want = reference(samples, 16_000, center=False)
    got = frontend.log_mel(samples.float())
    assert got.shape == (2, 80, 1 + (9_123 - 400) // 160)
    torch.testing.assert_close(got.double(), want, atol=2e-3, rtol=0)
    assert (got - want).abs().mean() < 2e-5
    normalised = frontend(samples.float())
    torch.testing.assert_close(normalised, (got + 7.056) / 4.193)


def test_the_fill_reaches_whole_patches_and_never_past_the_chunk() -> None:
    for frames, chunk, patch, want in (
        (304, 608, 16, 304), (235, 608, 16, 240), (1_001, 608, 16, 1_008), (1_001, 200, 4, 1_004),
        (1_000, 1_001, 16, 1_001), (1_005, 1_001, 16, 1_017),
    ):  # fmt: skip
        filled = fill_patches(torch.ones(1, 80, frames), chunk_frames=chunk, patch_frames=patch)
        assert filled.shape[-1] == want
        assert filled[..., :frames].all() and not filled[..., frames:].any()
