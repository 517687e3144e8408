"""Ingest's quality report: each fault is planted, and told apart from sound that only looks like it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr
import torch

from pipeline.audio import decode, quality, quality_report, sources
from pipeline.audio.ingest import Ingested, ingest
from pipeline.audio.near_duplicates import Fingerprinter, near_duplicates
from pipeline.audio.quality import Quality, QualityMeter
from pipeline.audio.torchaudio_loader import load_torchaudio

SECONDS = 3


def noise(rate_hz: int, slope: float, seed: int = 0) -> np.ndarray:
    """Noise whose power falls by ``slope`` x 3 dB an octave, peak 0.3."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(rate_hz * SECONDS))
    frequency = np.maximum(np.arange(len(spectrum)), 1)
    sound = np.fft.irfft(spectrum / frequency ** (slope / 2), rate_hz * SECONDS)
    return 0.3 * sound / np.abs(sound).max()


def as_pcm16(sound: np.ndarray) -> np.ndarray:
    return (np.clip(np.round(sound * 32_767), -32_768, 32_767) / 32_768).astype(np.float32)


def measured(sound: np.ndarray, rate_hz: int, container: str = "WAV", block: int = 1 << 20) -> Quality:
    meter = QualityMeter()
    sound = sound.astype(np.float32)
    for first in range(0, len(sound), block):
        part = sound[first : first + block]
        meter.add(part, float(np.abs(part).max()), rate_hz)
    return meter.measured(container)


@pytest.mark.parametrize(
    ("old", "new"), [(16_000, 32_000), (8_000, 16_000), (22_050, 44_100), (24_000, 48_000), (16_000, 44_100)]
)
# The two of few taps let images of loud bass through above the old half rate, which then is not empty: no brown noise.
@pytest.mark.parametrize(
    ("resampler", "slope"),
    [(name, slope) for name in ("MQ", "HQ", "VHQ") for slope in (0.0, 1.0, 2.0)]
    + [(name, slope) for name in ("scipy", "torchaudio") for slope in (0.0, 1.0)],
)
def test_an_upsampled_clip_is_told_apart_from_a_true_one(
    slope: float, old: int, new: int, resampler: str
) -> None:
    sound = noise(old, slope)
    if resampler == "scipy":
        upsampled = scipy.signal.resample_poly(sound, new, old)
    elif resampler == "torchaudio":
        resample = load_torchaudio().functional.resample
        upsampled = resample(torch.from_numpy(sound), old, new).numpy()
    else:
        upsampled = soxr.resample(sound, old, new, quality=resampler)
    found = measured(as_pcm16(upsampled), new)
    assert (found.bandwidth, found.was_rate_hz) == ("upsampled", old)
    assert 0.9 * old / 2 <= found.bandwidth_hz <= 1.15 * old / 2


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("rate_hz", [16_000, 32_000, 44_100, 48_000])
def test_true_broadband_sound_is_full_however_dull(slope: float, rate_hz: int) -> None:
    found = measured(as_pcm16(noise(rate_hz, slope)), rate_hz)
    assert (found.bandwidth, found.bandwidth_hz, found.was_rate_hz) == ("full", rate_hz / 2, 0)


@pytest.mark.parametrize("frequency_hz", [440, 3_000, 9_000])
def test_a_tone_has_no_bandwidth_to_miss(frequency_hz: int) -> None:
    tone = 0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(44_100 * SECONDS) / 44_100)
    assert measured(as_pcm16(tone), 44_100).bandwidth == "full"


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
@pytest.mark.parametrize("cut_hz", [16_000, 17_000, 19_000])
@pytest.mark.parametrize("container", ["MP3", "WAV"])
def test_a_codecs_low_pass_is_named_even_after_it_was_decoded_to_wav(
    rate_hz: int, cut_hz: int, container: str
) -> None:
    low_pass = scipy.signal.firwin(1_023, cut_hz, fs=rate_hz, window=("kaiser", 14.0))
    sound = scipy.signal.fftconvolve(noise(rate_hz, 1.0), low_pass, "same")
    found = measured(as_pcm16(sound), rate_hz, container)
    assert found.bandwidth == "lossy_lowpass"
    assert abs(found.bandwidth_hz - cut_hz) < 700


@pytest.mark.parametrize("rate_hz", [32_000, 44_100])
def test_a_real_mp3_of_few_bits_is_a_lossy_low_pass(rate_hz: int) -> None:
    buffer = io.BytesIO()
    soundfile.write(
        buffer, noise(rate_hz, 1.0), rate_hz, format="MP3", subtype="MPEG_LAYER_III",
        compression_level=0.95, bitrate_mode="CONSTANT",
    )  # fmt: skip
    sound, _ = soundfile.read(io.BytesIO(buffer.getvalue()), dtype="float32")
    assert measured(sound, rate_hz, "MP3").bandwidth == "lossy_lowpass"


def test_levels_are_what_a_direct_computation_gives() -> None:
    sound = noise(16_000, 1.0)
    sound[: len(sound) // 4] = 0
    sound += 0.02
    sound[20_000:20_040] = 1.0
    whole = sound.astype(np.float32).astype(np.float64)
    framed = whole[: len(whole) // quality.FRAME * quality.FRAME]
    for block in (1 << 20, 4_096, 64 * quality.FRAME):
        found = measured(sound, 16_000, block=block)
        assert found.peak == 1.0
        # At most 64 frames of these blocks: all of them are looked at, but for the end that fills none.
        assert found.dc_offset == pytest.approx(framed.mean(), rel=2e-3)
        assert found.rms_dbfs == pytest.approx(10 * np.log10(np.mean(framed**2)), abs=0.02)
        assert found.clipped_share == pytest.approx(39 / len(whole), rel=0.06)
    quiet = measured(np.concatenate((np.zeros(32_768), noise(16_000, 1.0)[:32_768])), 16_000)
    assert quiet.silence_share == 0.5


def test_silence_and_one_sample_are_measured_too() -> None:
    silent = measured(np.zeros(1_000), 16_000)
    assert (silent.silence_share, silent.bandwidth, silent.rms_dbfs) == (1.0, "full", -np.inf)
    assert measured(np.array([0.5]), 16_000).peak == 0.5


def test_a_lone_full_scale_sample_is_no_clipping() -> None:
    sound = noise(16_000, 1.0)
    sound[::1_000] = 1.0
    assert measured(sound, 16_000).clipped_share == 0


def folder_of_faults(folder: Path) -> None:
    good = noise(32_000, 1.0)
    copied = as_pcm16(good)
    sounds = {
        "good": good,
        "clipped": np.clip(8 * noise(32_000, 0.0, 1), -1, 1),
        "offset": noise(32_000, 1.0, 2) + 0.1,
        "silent": np.concatenate((noise(32_000, 1.0, 3)[:20_000], np.zeros(76_000))),
        "upsampled": soxr.resample(noise(16_000, 1.0, 4), 16_000, 32_000, quality="HQ"),
    }
    for name, sound in sounds.items():
        soundfile.write(folder / f"{name}.wav", sound, 32_000)
    soundfile.write(folder / "misnamed.wav", noise(32_000, 1.0, 5), 32_000, format="FLAC")
    soundfile.write(folder / "copy.flac", soundfile.read(folder / "good.wav", dtype="int16")[0], 32_000)
    soundfile.write(folder / "near.mp3", 0.7 * copied, 32_000)


def ingested(folder: Path, near: str) -> Ingested:
    return ingest(
        list(sources.folder_candidates("folder", folder)), {"folder": folder},
        min_seconds=0.05, validation_share=0.1, seed=0, workers=1, near=near,  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_report_names_each_planted_fault(tmp_path: Path) -> None:
    folder_of_faults(tmp_path)
    found = ingested(tmp_path, "report")
    found_issues = {Path(row.path).name: row.issues for row in found.quality.itertuples()}
    assert found_issues == {
        "clipped.wav": "clipping", "copy.flac": "", "misnamed.wav": "wrong_encoding", "near.mp3": "near_duplicate",
        "offset.wav": "dc_offset", "silent.wav": "silence", "upsampled.wav": "upsampled",
    }  # fmt: skip
    assert list(found.quality["clip_id"]) == list(found.clips["clip_id"])
    row = found.quality.set_index("path")
    assert row.loc["misnamed.wav", "wrong_encoding"] == "wav holds FLAC"
    assert row.loc["near.mp3", "near_duplicate_of"] == row.loc["copy.flac", "clip_id"]
    assert row.loc["upsampled.wav", "was_rate_hz"] == 16_000
    assert dict(zip(found.rejects["path"], found.rejects["reason"], strict=True)) == {"good.wav": "duplicate"}
    summary = quality_report.summary(found.quality, found.clips, found.rejects)
    planted = dict.fromkeys(
        ("clipping", "dc_offset", "silence", "upsampled", "wrong_encoding", "near_duplicate"), 1
    )
    assert summary["issues"] == planted
    assert summary["rejects"] == {"duplicate": 1}
    (dataset,) = summary["datasets"].values()
    assert (
        dataset["clips"] == 7 and dataset["sample_rates_hz"] == {"32000": 7} and dataset["issues"] == planted
    )
    assert set(summary["thresholds"]) == set(quality.ISSUES)


def test_near_duplicates_are_left_out_on_request_and_not_looked_for_by_default(tmp_path: Path) -> None:
    folder_of_faults(tmp_path)
    rejected = ingested(tmp_path, "reject").rejects.set_index("path")["reason"].to_dict()
    assert rejected == {"good.wav": "duplicate", "near.mp3": "near_duplicate"}
    assert not any("near_duplicate" in issues for issues in ingested(tmp_path, "off").quality["issues"])


def fingerprint(sound: np.ndarray, rate_hz: int):  # type: ignore[no-untyped-def]
    maker = Fingerprinter()
    for first in range(0, len(sound), 10_000):
        maker.add(sound[first : first + 10_000].astype(np.float32), 1.0, rate_hz)
    return maker.made()


def test_fingerprints_survive_rate_level_and_codec_and_nothing_else_matches() -> None:
    clips = [noise(32_000, 1.0, seed) for seed in range(30)]
    copies = [soxr.resample(clips[3], 32_000, 44_100) * 0.1, soxr.resample(clips[7], 32_000, 16_000)]
    prints = [fingerprint(clip, 32_000) for clip in clips]
    prints += [
        fingerprint(copies[0], 44_100),
        fingerprint(copies[1], 16_000),
        fingerprint(clips[9][: 32_000 * 2], 32_000),
    ]
    assert near_duplicates(prints) == {30: 3, 31: 7}
    assert fingerprint(clips[0][:20_000], 32_000) is None
    assert (
        near_duplicates([None, fingerprint(np.zeros(96_000), 32_000), fingerprint(np.zeros(96_000), 32_000)])
        == {}
    )


def test_measuring_changes_nothing_of_what_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(16_000, 1.0), 16_000)
    meter = QualityMeter()
    assert decode.inspect(tmp_path / "a.wav", 0.0, meter) == decode.inspect(tmp_path / "a.wav")
    assert meter.samples == 16_000 * SECONDS
