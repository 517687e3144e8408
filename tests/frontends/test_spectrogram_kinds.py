"""Linear bands, a floor under the logarithm and standardised waveforms; what older recipes and stores were named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from pydantic import ValidationError

from pipeline.config import LogMelConfig, Recipe, canonical_json
from pipeline.deploy.frontend_export import FrontendGraph, export_frontend
from pipeline.deploy.parity import check_parity, waveform_inputs
from pipeline.frontends.log_mel import LogMel
from pipeline.store.schema import frontend_digest
from tests.frontends import torchaudio_reference

HARMONIC_CNN = {
    "hop_length": 256, "pad_mode": "reflect", "bands": "linear", "log": "db", "log_offset": 0.0, "log_floor": 1e-10,
}  # fmt: skip
WAV2SMALL = {
    "n_fft": 64, "window_length": 64, "hop_length": 32, "center": False, "mels": 26, "min_hz": 0.0,
    "mel_scale": "slaney", "log": "db", "log_offset": 0.0, "log_floor": 1e-10, "standardise": True,
}  # fmt: skip


def sound(batch: int = 2, samples: int = 9_000, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return offset + torch.randn(batch, samples, generator=generator) * torch.logspace(-0.3, -4.0, samples)


def test_linear_bands_in_decibels_equal_torchaudio() -> None:
    config = LogMelConfig(**HARMONIC_CNN)
    torchaudio = torchaudio_reference.load()
    # In float64: the quiet bins beside a loud one hold little but the rounding of the transform at hand.
    wave = sound().double()
    spectrum = torchaudio.Spectrogram(n_fft=config.n_fft, hop_length=config.hop_length).double()(wave)
    want = torchaudio.AmplitudeToDB()(spectrum)
    got = LogMel(config).double()(wave)
    assert got.shape == (2, config.n_fft // 2 + 1, config.frames(9_000))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-3)


def test_silence_is_the_floor() -> None:
    config = LogMelConfig(**HARMONIC_CNN)
    assert torch.equal(
        LogMel(config)(torch.zeros(1, 4_000)), torch.full((1, 257, config.frames(4_000)), -100.0)
    )


def test_standardised_waveforms_give_the_spectrogram_of_a_standardised_one() -> None:
    config = LogMelConfig(**WAV2SMALL)
    plain = LogMel(config.model_copy(update={"standardise": False}))
    heard = sound(1, offset=0.3)
    waveform = heard.numpy().astype(np.float64)[0]
    centred = waveform - waveform.mean()
    by_hand = centred / np.sqrt(np.mean(centred**2) + 1e-7)
    got = LogMel(config)(heard)
    torch.testing.assert_close(got, plain(torch.from_numpy(by_hand[None]).float()), rtol=0, atol=1e-3)
    torch.testing.assert_close(got, LogMel(config)(7.0 * heard - 2.0), rtol=0, atol=2e-2)
    assert torch.equal(LogMel(config)(torch.ones(1, 640)), torch.full((1, 26, 19), -100.0))


def test_wav2small_spectrum_is_the_windowed_dft_of_each_frame() -> None:
    config = LogMelConfig(**WAV2SMALL, bands="mel").model_copy(update={"standardise": False})
    linear = LogMelConfig(**{**WAV2SMALL, "bands": "linear", "mels": 33, "standardise": False})
    wave = sound(1)
    frames = wave[0].double().unfold(0, 64, 32).numpy() * scipy.signal.windows.hann(64, sym=False)
    power = np.abs(np.fft.rfft(frames)) ** 2
    want = 10 * np.log10(np.maximum(power.T, 1e-10))
    np.testing.assert_allclose(LogMel(linear).double()(wave.double())[0].numpy(), want, atol=1e-3)
    # A bin is 250 Hz wide: one of the 26 bands holds none, and stays at the floor.
    empty = (LogMel(config)(wave)[0] == -100.0).all(dim=1)
    assert int(empty.sum()) == 1


@pytest.mark.parametrize("constants", [HARMONIC_CNN, WAV2SMALL], ids=["linear", "standardised"])
def test_the_exported_frontend_equals_torch(constants: dict[str, object], tmp_path: Path) -> None:
    config = LogMelConfig.model_validate(constants)
    export_frontend(config, tmp_path / "frontend.onnx")
    check_parity(FrontendGraph(config).eval(), tmp_path / "frontend.onnx", waveform_inputs(), tolerance=1e-4)


def test_keys_that_came_later_leave_older_digests_alone() -> None:
    plain = LogMelConfig()
    older = {"frontend": "log_mel/1", **json.loads(canonical_json(plain))}
    assert set(older) == {
        "frontend", "sample_rate_hz", "n_fft", "window_length", "hop_length", "window", "center", "pad_mode", "power",
        "mels", "min_hz", "max_hz", "mel_scale", "mel_norm", "log", "log_offset",
    }  # fmt: skip
    # Named so before there were linear bands.
    assert frontend_digest(plain).startswith("3fc51f84aecd")
    assert frontend_digest(LogMelConfig(log_floor=1e-10)) != frontend_digest(plain)


def test_a_frontend_survives_json_and_a_change_of_the_recipe() -> None:
    config = LogMelConfig(**HARMONIC_CNN)
    assert LogMelConfig.model_validate(json.loads(canonical_json(config))) == config
    recipe = Recipe.model_validate({"embed": {"frontend": HARMONIC_CNN}})
    assert Recipe.model_validate(recipe.model_dump(mode="python")) == recipe


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"bands": "linear", "mels": 64}, "has 257 bins"),
        ({"log_offset": 0.0}, "-inf"),
        ({"log_floor": -1.0}, "greater than or equal to 0"),
    ],
)
def test_impossible_constants_are_refused(constants: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LogMelConfig.model_validate(constants)
