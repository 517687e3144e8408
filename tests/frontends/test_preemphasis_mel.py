"""The pre-emphasis log-mel against torchaudio's own bank and spectrogram, and against its formula."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import AudioError, ConfigError
from pipeline.frontends.preemphasis_mel import PreemphasisMel, PreemphasisMelConfig, kaldi_mel_bank
from tests.frontends import torchaudio_reference

CONFIGS = [
    PreemphasisMelConfig(),
    PreemphasisMelConfig(n_fft=4096, window_length=3072, hop_length=750, mels=256, max_hz=15_500.0),
]


def torchaudio_bank(config: PreemphasisMelConfig) -> Tensor:
    torchaudio_reference.load()
    kaldi = importlib.import_module("torchaudio.compliance.kaldi")
    band = (config.min_hz, config.max_hz)
    bank, _ = kaldi.get_mel_banks(
        config.mels, config.n_fft, float(config.sample_rate_hz), *band, 100.0, -500.0, 1.0
    )
    assert isinstance(bank, Tensor)
    return bank


@pytest.mark.parametrize("config", CONFIGS, ids=["passt", "cp_resnet"])
def test_bank_is_torchaudios(config: PreemphasisMelConfig) -> None:
    theirs = torchaudio_bank(config)
    ours = kaldi_mel_bank(
        n_fft=config.n_fft, sample_rate_hz=config.sample_rate_hz, mels=config.mels,
        min_hz=config.min_hz, max_hz=config.max_hz,
    )  # fmt: skip
    np.testing.assert_allclose(ours[:, :-1], theirs.numpy(), atol=3e-5)
    assert not ours[:, -1].any()


@pytest.mark.parametrize("config", CONFIGS, ids=["passt", "cp_resnet"])
def test_equals_the_published_chain_in_float64(config: PreemphasisMelConfig) -> None:
    samples = torch.randn(2, 9_001, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kernel = torch.tensor([[[-config.preemphasis, 1.0]]], dtype=torch.float64)
    spectrum = torch.stft(
        torch.nn.functional.conv1d(samples[:, None], kernel)[:, 0],
        config.n_fft, config.hop_length, config.window_length,
        torch.hann_window(config.window_length, periodic=False, dtype=torch.float64),
        center=True, pad_mode="reflect", return_complex=True,
    )  # fmt: skip
    bank = torchaudio_bank(config)
    mel = torch.nn.functional.pad(bank.double(), (0, 1)) @ spectrum.abs().square()
    want = (torch.log(mel + config.log_offset) + config.shift) / config.scale
    got = PreemphasisMel(config)(samples.float())
    assert got.shape == want.shape == (2, config.mels, config.frames(9_001))
    torch.testing.assert_close(got.double(), want, atol=2e-3, rtol=0)
    assert (got - want).abs().mean() < 2e-5


def test_fewest_samples_give_the_frames() -> None:
    config = CONFIGS[0]
    for frames in (2, 16, 31):
        samples = config.samples(frames)
        assert PreemphasisMel(config)(torch.zeros(1, samples)).shape[-1] == frames
        if frames > 2:
            assert config.frames(samples - 1) == frames - 1


def test_too_short_and_impossible_band() -> None:
    config = CONFIGS[0]
    PreemphasisMel(config)(torch.zeros(1, config.samples(1)))
    with pytest.raises(AudioError) as refused:
        PreemphasisMel(config)(torch.zeros(1, config.samples(1) - 1))
    assert refused.value.reason == "too_short"
    with pytest.raises(ConfigError, match="mel band"):
        PreemphasisMel(PreemphasisMelConfig(max_hz=16_001.0))
