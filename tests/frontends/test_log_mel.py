"""LogMel against torchaudio, librosa and its own ONNX export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from pipeline.config import LogMelConfig
from pipeline.errors import AudioError
from pipeline.frontends.log_mel import LogMel
from pipeline.frontends.mel_bank import hz_to_mel, mel_to_hz
from tests.frontends import torchaudio_reference

CONFIGS = {
    "default": {},
    "reflect": {"pad_mode": "reflect"},
    "no_center": {"center": False, "hop_length": 160, "max_hz": 7_600.0},
    "symmetric_short_window": {"window": "hann_symmetric", "window_length": 400, "log": "log10"},
    "slaney_no_norm": {"mel_scale": "slaney", "mel_norm": "none", "log": "db", "min_hz": 0.0},
    "slaney": {"mel_scale": "slaney", "mels": 40, "log_offset": 1e-6},
    "magnitude": {"power": 1.0, "log_offset": 1e-3, "mels": 32},
    "44k_wide": {
        "sample_rate_hz": 44_100, "n_fft": 2_048, "window_length": 1_764, "hop_length": 441, "mels": 128,
        "max_hz": 22_050.0, "center": False,
    },
    "odd_window": {"n_fft": 400, "window_length": 399, "hop_length": 133, "mels": 24, "center": False},
}  # fmt: skip


def sound(config: LogMelConfig, batch: int = 2, seconds: float = 0.7) -> Tensor:
    """Return noise whose level falls by 80 dB, so that the logarithm's offset is exercised too."""
    generator = torch.Generator().manual_seed(5)
    samples = int(seconds * config.sample_rate_hz)
    return torch.randn(batch, samples, generator=generator) * torch.logspace(-0.3, -4.3, samples)


def log_level(mel: Any, config: LogMelConfig) -> Any:
    library = torch if isinstance(mel, Tensor) else np
    if config.log == "ln":
        return library.log(mel + config.log_offset)
    return library.log10(mel + config.log_offset) * (10.0 if config.log == "db" else 1.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_torchaudio(name: str) -> None:
    config = LogMelConfig(**CONFIGS[name])
    waveform = sound(config)
    reference = torchaudio_reference.load().MelSpectrogram(
        config.sample_rate_hz, n_fft=config.n_fft, win_length=config.window_length,
        hop_length=config.hop_length, f_min=config.min_hz, f_max=config.max_hz,
        n_mels=config.mels, power=config.power,
        window_fn=lambda n: torch.hann_window(n, periodic=config.window == "hann_periodic"),
        center=config.center, pad_mode=config.pad_mode, mel_scale=config.mel_scale,
        norm="slaney" if config.mel_norm == "slaney" else None,
    )  # fmt: skip
    want = log_level(reference(waveform), config)
    got = LogMel(config)(waveform)
    assert got.shape == (2, config.mels, config.frames(waveform.shape[1]))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_librosa(name: str) -> None:
    config = LogMelConfig(**CONFIGS[name])
    waveform = sound(config)
    symmetric = config.window == "hann_symmetric"
    mel = librosa.feature.melspectrogram(
        y=waveform.numpy(), sr=config.sample_rate_hz, n_fft=config.n_fft, hop_length=config.hop_length,
        win_length=config.window_length, center=config.center, pad_mode=config.pad_mode, power=config.power,
        window=np.hanning(config.window_length) if symmetric else "hann", n_mels=config.mels,
        fmin=config.min_hz, fmax=config.max_hz, htk=config.mel_scale == "htk",
        norm="slaney" if config.mel_norm == "slaney" else None,
    )  # fmt: skip
    got = LogMel(config)(waveform)
    torch.testing.assert_close(got, torch.from_numpy(log_level(mel, config)).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["reflect", "44k_wide"])
def test_exports_with_dynamic_batch_and_samples(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    config = LogMelConfig(**CONFIGS[name])
    frontend = LogMel(config).eval()
    shapes = {
        "waveform": {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples", min=2 * config.n_fft)}
    }
    program = torch.onnx.export(
        frontend, (sound(config),), dynamo=True, dynamic_shapes=shapes, input_names=["waveform"],
        output_names=["log_mel"], opset_version=20, verbose=False,
    )  # fmt: skip
    program.save(tmp_path / "frontend.onnx")
    session = ort.InferenceSession(tmp_path / "frontend.onnx", providers=["CPUExecutionProvider"])
    for batch, seconds in ((1, 0.21), (3, 1.3)):
        waveform = sound(config, batch, seconds)
        (got,) = session.run(None, {"waveform": waveform.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), frontend(waveform), atol=2e-4, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(257, 5_000), hop=st.integers(1, 700), center=st.booleans(),
    n_fft=st.sampled_from([64, 200, 254, 512]), pad_mode=st.sampled_from(["constant", "reflect"]),
)  # fmt: skip
def test_frame_count_is_the_configs(samples: int, hop: int, center: bool, n_fft: int, pad_mode: str) -> None:
    config = LogMelConfig(
        n_fft=n_fft, window_length=n_fft, hop_length=hop, mels=4, center=center, pad_mode=pad_mode
    )
    waveform = torch.zeros(1, samples)
    if config.frames(samples) == 0:
        with pytest.raises(AudioError, match="too few samples"):
            LogMel(config)(waveform)
    else:
        assert LogMel(config)(waveform).shape == (1, 4, config.frames(samples))


def test_silence_is_the_offset() -> None:
    config = LogMelConfig(log_offset=1e-5)
    level = LogMel(config)(torch.zeros(1, 16_000))
    torch.testing.assert_close(level, torch.full_like(level, float(np.log(1e-5))))


def test_batch_rows_do_not_touch_each_other() -> None:
    config = LogMelConfig()
    waveform = sound(config, batch=3)
    together = LogMel(config)(waveform)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], LogMel(config)(waveform[row : row + 1]))


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_mel_scale_equals_librosa_and_inverts(scale: str) -> None:
    hz = np.linspace(0.0, 22_050.0, 333)
    mel = hz_to_mel(hz, scale)
    np.testing.assert_allclose(mel, librosa.hz_to_mel(hz, htk=scale == "htk"), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mel_to_hz(mel, scale), hz, rtol=1e-9, atol=1e-6)


def test_empty_bands_are_said(caplog: pytest.LogCaptureFixture) -> None:
    LogMel(LogMelConfig(n_fft=64, window_length=64, mels=64))
    assert "mel bands hold no FFT bin" in caplog.text


@pytest.mark.parametrize(
    "bad",
    [{"max_hz": 9_000.0}, {"window_length": 600}, {"log_offset": 0.0}, {"min_hz": 8_000.0}, {"n_fft": 513}],
)
def test_impossible_constants_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        LogMelConfig(**bad)
