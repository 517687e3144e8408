"""The batched Kaldi filter bank against torchaudio's and kaldi-native-fbank's, clip by clip."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.audio.torchaudio_loader import load_torchaudio
from pipeline.errors import MissingDependencyError
from pipeline.frontends import kaldi_compiled, kaldi_fbank
from pipeline.frontends.beats_frontend import BeatsFrontend
from pipeline.frontends.kaldi_fbank import FbankConfig, KaldiFbank

SAME = 1e-4
# Our key: torchaudio's key, kaldi-native-fbank's path below its options.
KEYS = {
    "sample_rate_hz": ("sample_frequency", "frame_opts.samp_freq"),
    "mels": ("num_mel_bins", "mel_opts.num_bins"),
    "frame_length_ms": ("frame_length", "frame_opts.frame_length_ms"),
    "frame_shift_ms": ("frame_shift", "frame_opts.frame_shift_ms"),
    "window": ("window_type", "frame_opts.window_type"),
    "preemphasis": ("preemphasis_coefficient", "frame_opts.preemph_coeff"),
    "remove_dc_offset": ("remove_dc_offset", "frame_opts.remove_dc_offset"),
    "snip_edges": ("snip_edges", "frame_opts.snip_edges"),
    "round_to_power_of_two": ("round_to_power_of_two", "frame_opts.round_to_power_of_two"),
    "low_hz": ("low_freq", "mel_opts.low_freq"),
    "high_hz": ("high_freq", "mel_opts.high_freq"),
    "use_power": ("use_power", "use_power"),
}
BEATS: dict[str, Any] = {}
AST = {"window": "hanning", "low_hz": 20.0, "mels": 128}
SPEECH = {"mels": 80, "window": "hamming", "low_hz": 64.0, "high_hz": -400.0}
MIRRORED = {"snip_edges": False, "window": "blackman", "mels": 40}
PLAIN = {
    "preemphasis": 0.0,
    "remove_dc_offset": False,
    "window": "rectangular",
    "use_power": False,
    "mels": 23,
}
WIDE = {"sample_rate_hz": 44_100, "frame_length_ms": 23.0, "frame_shift_ms": 7.5, "mels": 64}
CONFIGS = {
    "beats": BEATS,
    "ast": AST,
    "speech": SPEECH,
    "mirrored": MIRRORED,
    "plain": PLAIN,
    "44.1 kHz": WIDE,
}


@pytest.fixture(scope="module")
def torchaudio_kaldi() -> ModuleType:
    try:
        load_torchaudio()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    return importlib.import_module("torchaudio.compliance.kaldi")


def loud(clips: int, samples: int, seed: int = 0) -> Tensor:
    """Return noise with a tone and a slow offset, in 16-bit range."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(samples) / 16_000
    tone = torch.sin(2 * torch.pi * 440 * t) + 0.3 * torch.sin(2 * torch.pi * 0.7 * t)
    return 3_000 * (torch.randn(clips, samples, generator=generator) + tone)


def by_torchaudio(kaldi: ModuleType, waves: Tensor, config: FbankConfig) -> Tensor:
    given = {theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()}
    return torch.stack([kaldi.fbank(wave[None], dither=0.0, **given) for wave in waves])


def around_frames(config: FbankConfig) -> list[int]:
    """Return lengths at, one short of and one past whole frames, and some of seconds."""
    size, shift = config.frame_samples, config.shift_samples
    near = [size + k * shift + d for k in (0, 1, 2, 30) for d in (-1, 0, 1)]
    return [n for n in near if n >= size] + [16_000, 51_440, 100_003]


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_torchaudio_at_every_length(torchaudio_kaldi: ModuleType, name: str) -> None:
    config = FbankConfig.model_validate(CONFIGS[name])
    fbank = KaldiFbank(config)
    for samples in around_frames(config):
        waves = loud(2, samples)
        ours, theirs = fbank(waves), by_torchaudio(torchaudio_kaldi, waves, config)
        assert ours.shape == theirs.shape == (2, config.frames(samples), config.mels)
        assert float((ours - theirs).abs().max()) <= SAME, samples


@pytest.mark.parametrize("sums_itself", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_compiled_frames_are_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, name: str, sums_itself: bool
) -> None:
    pytest.importorskip("numba", reason="numba is not installed (extra: speed)")
    if not sums_itself:
        monkeypatch.setattr(kaldi_fbank, "_sums_as_torch", lambda size: False)
    passes = kaldi_compiled.compiled()
    assert passes is not None
    config = FbankConfig.model_validate(CONFIGS[name])
    fbank = KaldiFbank(config)
    for samples in around_frames(config):
        wave = loud(2, samples + config.frame_samples)
        framed = wave.unfold(1, config.frame_samples, config.shift_samples)
        count = framed.shape[0] * framed.shape[1]
        whole, by_numba = torch.zeros(2, count, config.n_fft).unbind(0)
        fbank._frame(framed, fbank._scratch(count), whole)
        fbank._frame_compiled(wave, framed, 0, by_numba, passes)
        assert torch.equal(whole, by_numba), samples


def test_means_of_another_order_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="numba is not installed (extra: speed)")
    real = kaldi_compiled.compiled()
    assert real is not None

    def from_the_left(waves: np.ndarray, start: int, shift: int, frames: int, *rest: Any) -> None:
        size = len(rest[1])
        framed = np.lib.stride_tricks.sliding_window_view(waves[0], size)[::shift][start : start + frames]
        means = np.add.accumulate(framed, axis=1)[:, -1] / np.float32(size)
        real.write_frames(waves, start, shift, frames, means, *rest[1:])

    monkeypatch.setattr(kaldi_fbank, "compiled", lambda: real._replace(write_frames=from_the_left))
    assert not kaldi_fbank._sums_as_torch.__wrapped__(400)


@pytest.mark.parametrize("name", CONFIGS)
def test_compiled_log_mels_are_the_same(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """To the rounding of sums of squares, which are taken in another order."""
    pytest.importorskip("numba", reason="numba is not installed (extra: speed)")
    config = FbankConfig.model_validate(CONFIGS[name])
    fbank = KaldiFbank(config)
    waves = [loud(3, samples)[:, ::step] for samples in around_frames(config) for step in (1, 2)]
    by_numba = [fbank(wave) for wave in waves]
    monkeypatch.setattr(kaldi_fbank, "compiled", lambda: None)
    for wave, made in zip(waves, by_numba, strict=True):
        torch.testing.assert_close(made, fbank(wave), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("name", ["beats", "ast", "speech", "mirrored"])
def test_equals_kaldi_native_fbank(name: str) -> None:
    """At 80 mels at most: it refuses 128 at 16 kHz, where the lowest bands hold no bin of the transform."""
    native = pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is not installed")
    config = FbankConfig.model_validate(CONFIGS[name] | {"mels": min(80, CONFIGS[name].get("mels", 80))})
    options = native.FbankOptions()
    options.frame_opts.dither = 0
    for ours, (_, path) in KEYS.items():
        *folder, leaf = path.split(".")
        setattr(getattr(options, folder[0]) if folder else options, leaf, getattr(config, ours))
    for samples in (config.frame_samples, 4_000, 16_000, 51_440):
        wave = loud(1, samples)
        theirs = native.OnlineFbank(options)
        theirs.accept_waveform(config.sample_rate_hz, wave[0].tolist())
        theirs.input_finished()
        want = np.stack([theirs.get_frame(k) for k in range(theirs.num_frames_ready)])
        got = KaldiFbank(config)(wave)[0].numpy()
        assert got.shape == want.shape
        difference = np.abs(got - want)
        # Its Fourier transform is another one, and the quietest bins are that one's rounding.
        assert np.quantile(difference, 0.999) <= SAME, samples
        assert difference.mean() <= SAME / 10, samples


def test_batch_equals_its_clips_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    fbank, waves = KaldiFbank(), loud(5, 16_000 + 7)
    one_by_one = torch.cat([fbank(wave[None]) for wave in waves])
    for at_once in (1, 7, 98, 200, 10_000):
        monkeypatch.setattr(kaldi_fbank, "_CPU_FRAMES", at_once)
        assert float((fbank(waves) - one_by_one).abs().max()) <= 1e-5, at_once


def test_shorter_than_a_frame_gives_no_frames_and_mirrored_ends_give_kaldis() -> None:
    assert KaldiFbank()(loud(3, 399)).shape == (3, 0, 128)
    assert KaldiFbank()(loud(3, 0)).shape == (3, 0, 128)
    assert KaldiFbank()(torch.zeros(0, 16_000)).shape == (0, 98, 128)
    config = FbankConfig(snip_edges=False)
    wave = loud(1, 85)
    # Shorter than the reach of one frame: the mirror images repeat.
    folded = torch.cat([wave[0], wave[0].flip(0)]).repeat(20)
    start = 20 * 85 - (config.frame_samples - config.shift_samples) // 2
    want = KaldiFbank()(folded[None, start : start + config.frame_samples])
    torch.testing.assert_close(KaldiFbank(config)(wave), want)


def by_definition(waves: Tensor, config: FbankConfig) -> Tensor:
    """Return the log-mels in float64, of the same window and weights, from the definition."""
    frames = waves.double().unfold(1, config.frame_samples, config.shift_samples)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = kaldi_fbank.analysis_window(config).double()
    spectrum = torch.fft.rfft((frames - config.preemphasis * before) * window, n=config.n_fft)
    energies = spectrum.abs() ** 2 @ kaldi_fbank.mel_weights(config).double()
    return torch.log(energies.clamp(min=kaldi_fbank.LOG_FLOOR))


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("name", ["beats", "ast", "speech"])
def test_a_loud_low_tone_over_quiet_noise_is_no_worse_than_by_torchaudio(
    monkeypatch: pytest.MonkeyPatch, torchaudio_kaldi: ModuleType, name: str, is_compiled: bool
) -> None:
    """Noise 90 dB below a tone: the high bands stand at the rounding of the tone's transform."""
    if is_compiled:
        pytest.importorskip("numba", reason="numba is not installed (extra: speed)")
    else:
        monkeypatch.setattr(kaldi_fbank, "compiled", lambda: None)
    config = FbankConfig.model_validate(CONFIGS[name])
    generator, t = torch.Generator().manual_seed(1), torch.arange(32_000, dtype=torch.float64) / 16_000
    for hz in (60.0, 110.0, 233.0):
        tone = 2**0.5 * torch.sin(2 * torch.pi * hz * t)
        noise = 10 ** (-90 / 20) * torch.randn(2, len(t), generator=generator, dtype=torch.float64)
        waves = (10_000 * (tone + noise)).float()
        ours, theirs = KaldiFbank(config)(waves), by_torchaudio(torchaudio_kaldi, waves, config)
        assert float((ours - theirs).abs().max()) <= SAME, hz
        want = by_definition(waves, config)
        our_error, their_error = ((made - want).abs() for made in (ours, theirs))
        assert float(our_error.max()) <= 2 * float(their_error.max()), hz
        assert float(our_error.mean()) <= 1.1 * float(their_error.mean()), hz


@pytest.mark.parametrize("is_compiled", [True, False])
def test_what_is_no_number_stays_within_its_frames(
    monkeypatch: pytest.MonkeyPatch, is_compiled: bool
) -> None:
    if is_compiled:
        pytest.importorskip("numba", reason="numba is not installed (extra: speed)")
    else:
        monkeypatch.setattr(kaldi_fbank, "compiled", lambda: None)
    waves = loud(2, 16_000)
    want = KaldiFbank()(waves)
    waves[1, 8_000] = float("nan")
    got = KaldiFbank()(waves)
    touched = torch.zeros(2, 98, dtype=torch.bool)
    touched[1] = torch.tensor([k * 160 <= 8_000 < k * 160 + 400 for k in range(98)])
    assert bool(got[touched].isnan().all())
    torch.testing.assert_close(got[~touched], want[~touched])


def test_silence_is_the_floor() -> None:
    assert torch.equal(KaldiFbank()(torch.zeros(1, 400)), torch.full((1, 1, 128), float(np.log(2.0**-23))))


def test_beats_features_are_the_normalised_fbank_of_16_bit_samples(torchaudio_kaldi: ModuleType) -> None:
    waves = loud(2, 20_000) / 2**15
    want = by_torchaudio(torchaudio_kaldi, waves * 2**15, FbankConfig())
    torch.testing.assert_close(BeatsFrontend()(waves), (want - 15.41663) / (2 * 6.55582), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"high_hz": 9_000.0},
        {"low_hz": 8_000.0},
        {"frame_shift_ms": 0.01},
        {"frame_length_ms": 25.1, "round_to_power_of_two": False},
        {"window": "hann"},
        {"mel": 64},
    ],
)
def test_impossible_constants_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FbankConfig.model_validate(wrong)
