"""The teachers' log-mels against librosa, at lengths that are no multiple of the hop."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.frontends import mule_frontend, resemblyzer_frontend
from pipeline.frontends.mule_frontend import MuleFrontend
from pipeline.frontends.panns_frontend import AT_16_KHZ, AT_32_KHZ, PannsFrontend, PannsFrontendConfig
from pipeline.frontends.resemblyzer_frontend import ResemblyzerFrontend, partial_starts


def sound(samples: int) -> Tensor:
    """Noise over a tone, so that no bin is empty."""
    noise = 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(3))
    return noise + 0.3 * torch.sin(torch.arange(samples) * 0.1)


@pytest.mark.parametrize("config", [AT_32_KHZ, AT_16_KHZ])
def test_panns(config: PannsFrontendConfig) -> None:
    clips = sound(21_111)
    power = librosa.feature.melspectrogram(
        y=clips.numpy(), sr=config.sample_rate_hz, n_fft=config.n_fft, hop_length=config.hop_length, n_mels=64,
        fmin=50, fmax=config.max_hz, pad_mode="reflect",
    )  # fmt: skip
    want = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)
    got = PannsFrontend(config)(clips).transpose(1, 2).numpy()
    np.testing.assert_allclose(got, want, atol=2e-3)
    silence = PannsFrontend(config)(torch.zeros(1, 2_000))
    assert torch.equal(silence, torch.full_like(silence, -100.0))


def test_mule() -> None:
    clips = sound(50_123)
    power = librosa.feature.melspectrogram(
        y=clips.numpy(), sr=16_000, n_fft=2_048, win_length=400, hop_length=160, n_mels=96, fmin=0, fmax=8_000,
        htk=True, norm=2.0, pad_mode="reflect",
    )  # fmt: skip
    # The port's DFT has float32 angles, up to 2.4e-4 off.
    np.testing.assert_allclose(MuleFrontend().log_mel(clips).numpy(), np.log10(1e4 * power + 1), atol=2e-3)


def test_mule_slices_are_standardised() -> None:
    slices = MuleFrontend()(sound(80_000))
    assert slices.shape == (2, 2, 96, mule_frontend.SLICE_FRAMES)
    np.testing.assert_allclose(slices.mean(dim=(2, 3)).numpy(), 0.0, atol=1e-4)
    np.testing.assert_allclose(slices.std(dim=(2, 3), correction=0).numpy(), 1.0, atol=1e-3)
    assert MuleFrontend()(torch.zeros(1, 60_000)).abs().max() == 0.0


def test_resemblyzer() -> None:
    clips = sound(21_111)
    want = librosa.feature.melspectrogram(y=clips.numpy(), sr=16_000, n_fft=400, hop_length=160, n_mels=40)
    got = ResemblyzerFrontend().mel(clips).transpose(1, 2).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_resemblyzer_raises_and_never_lowers_the_level() -> None:
    quiet = 0.001 * sound(4_000)
    raised = ResemblyzerFrontend.raised(torch.cat([quiet, sound(4_000), torch.zeros(1, 4_000)]))
    level_db = 20 * raised[:2].square().mean(dim=1).sqrt().log10()
    np.testing.assert_allclose(level_db.numpy(), resemblyzer_frontend.TARGET_DBFS, atol=1e-3)
    assert torch.equal(raised[2:4], sound(4_000))
    assert raised[4].abs().max() == 0.0


def test_resemblyzer_drops_a_last_partial_that_is_mostly_padding() -> None:
    step = resemblyzer_frontend.PARTIAL_STEP_FRAMES
    assert step == 77
    assert partial_starts(100) == partial_starts(25_600) == [0]
    # The second partial reaches from sample 12,320 to 37,920: three quarters of it are inside from 31,520 on.
    assert partial_starts(31_519) == [0]
    assert partial_starts(31_520) == [0, step]
    assert ResemblyzerFrontend()(sound(31_520)).shape == (2, 2, 160, 40)
