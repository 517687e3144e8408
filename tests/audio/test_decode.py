"""Decoding against the standard library's wave module, whole reads and scipy's resampler."""

from __future__ import annotations

import hashlib
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from pipeline.audio import decode, resampling
from pipeline.errors import AudioError
from tests.audio.hostile_files import encoded, sound


def by_wave_module(path: Path) -> tuple[np.ndarray, int]:
    with wave.open(str(path)) as file:
        frames = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return frames.reshape(-1, file.getnchannels()) / 32_768, file.getframerate()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_mono_is_the_mean_of_the_channels(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded("wav", sound(channels=channels)))
    expected, rate = by_wave_module(path)
    found, found_rate = decode.read(path)
    assert found_rate == rate
    np.testing.assert_allclose(found, expected.mean(axis=1), atol=1e-7)
    assert found.dtype == np.float32 and found.shape == (len(expected),)


def test_a_file_longer_than_a_block_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    frames = decode.BLOCK_VALUES // 4 * 3
    path.write_bytes(encoded("wav", sound(seconds=frames / 16_000, channels=4)))
    expected, _ = by_wave_module(path)
    assert frames * 4 > decode.BLOCK_VALUES
    np.testing.assert_allclose(decode.read(path)[0], expected.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_a_range_is_the_slice_of_the_whole(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(encoded(form, sound(seconds=4.0)))
    whole, _ = decode.read(path)
    for start, frames in ((0, 100), (1, 5_000), (31_337, 20_000), (len(whole) - 7, 7)):
        part, _ = decode.read(path, start, frames)
        # MP3 frames overlap, so a seek may differ in the last bits.
        np.testing.assert_allclose(part, whole[start : start + frames], atol=1e-4 if form == "mp3" else 0)


def test_a_range_past_the_end_is_short_and_beyond_it_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded("wav", sound()))
    assert len(decode.read(path, 7_990, 100)[0]) == 10
    with pytest.raises(AudioError) as caught:
        decode.read(path, 9_000, 100)
    assert caught.value.reason == "no_samples"


def test_probe_reads_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(encoded("flac", sound(channels=2)))
    info = decode.probe(path)
    assert (info.sample_rate_hz, info.channels, info.frames, info.format) == (16_000, 2, 8_000, "FLAC")
    assert info.duration_seconds == 0.5


def test_the_digest_is_of_rate_and_sound_not_of_the_file(tmp_path: Path) -> None:
    samples = sound()
    for name, form, rate in (("a.wav", "wav", 16_000), ("b.flac", "flac", 16_000), ("c.wav", "wav", 8_000)):
        (tmp_path / name).write_bytes(encoded(form, samples, rate))
    mono, rate = by_wave_module(tmp_path / "a.wav")
    content = f"{rate} Hz\n".encode() + mono[:, 0].astype("<f4").tobytes()
    assert decode.decoded_digest(tmp_path / "a.wav") == hashlib.sha256(content).hexdigest()
    assert decode.decoded_digest(tmp_path / "b.flac") == decode.decoded_digest(tmp_path / "a.wav")
    assert decode.decoded_digest(tmp_path / "c.wav") != decode.decoded_digest(tmp_path / "a.wav")


def test_the_digest_does_not_depend_on_the_block_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded("wav", sound(channels=3)))
    whole = decode.inspect(path)
    monkeypatch.setattr(decode, "BLOCK_VALUES", 1_000)
    assert decode.inspect(path) == whole


def test_eight_bit_and_float_files_are_the_same_sound(tmp_path: Path) -> None:
    samples = np.round(np.sin(np.arange(8_000) / 20) * 100) / 128
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="PCM_U8")
    soundfile.write(tmp_path / "b.wav", samples, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(
        decode.read(tmp_path / "a.wav")[0], decode.read(tmp_path / "b.wav")[0], atol=1e-6
    )


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44_100, 16_000), (8_000, 44_100), (48_000, 44_100)])
def test_resampled_sines_are_the_sines_of_the_new_rate(from_hz: int, to_hz: int) -> None:
    def sines(rate: int) -> np.ndarray:
        seconds = np.arange(rate) / rate
        return sum(np.sin(2 * np.pi * hz * seconds) for hz in (97.0, 880.0, 2_950.0)) / 4

    found = resampling.resample(sines(from_hz).astype(np.float32), from_hz, to_hz)
    assert len(found) == to_hz and found.dtype == np.float32
    inner = slice(to_hz // 10, -to_hz // 10)  # a second that begins and ends at once rings at both ends
    np.testing.assert_allclose(found[inner], sines(to_hz)[inner], atol=2e-5)


def test_resampling_removes_what_the_new_rate_cannot_hold() -> None:
    tone = np.sin(2 * np.pi * 12_000 * np.arange(44_100) / 44_100).astype(np.float32)
    assert np.abs(resampling.resample(tone, 44_100, 16_000)[1_000:-1_000]).max() < 1e-5


def test_resampling_again_gives_the_bits_of_a_fresh_resampler() -> None:
    """In every thread: the filter's state must not stay from one signal to the next."""
    rng = np.random.default_rng(0)
    signals = [rng.standard_normal(samples).astype(np.float32) for samples in (88_200, 50, 12_345, 88_200)]
    rates = [(44_100, 16_000), (48_000, 44_100), (44_100, 16_000), (8_000, 44_100)]

    def resampled(signal: np.ndarray) -> list[np.ndarray]:
        return [resampling.resample(signal, *rate) for rate in rates]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(resampled, signals * 3))
    for signal, ours in zip(signals * 3, found, strict=True):
        for rate, one in zip(rates, ours, strict=True):
            np.testing.assert_array_equal(one, soxr.resample(signal, *rate, quality="HQ"))


@pytest.mark.parametrize("samples", [100, 3_629, 5_000])
def test_rows_are_resampled_like_each_alone(samples: int) -> None:
    rows = np.random.default_rng(1).standard_normal((5, 10_001)).astype(np.float32)
    rows[2] = 0
    found = resampling.resample_rows(rows, 44_100, 16_000, samples)
    assert found.shape == (5, samples)
    for row, ours in zip(rows, found, strict=True):
        alone = soxr.resample(row, 44_100, 16_000, quality="HQ")
        np.testing.assert_array_equal(ours[: len(alone)], alone[:samples])
        assert not ours[len(alone) :].any()
    np.testing.assert_array_equal(resampling.resample_rows(rows, 8_000, 8_000, 50), rows[:, :50])


@pytest.mark.parametrize("to_hz", [4_000, 16_000, 44_099, 48_000])
def test_silent_ends_of_rows_change_no_bit(to_hz: int) -> None:
    generator = np.random.default_rng(2)
    rows = np.zeros((6, 101_376), dtype=np.float32)
    for row, sounding in zip(rows, (0, 1, 16_384, 50_000, 101_375, 101_376), strict=True):
        row[:sounding] = 3 * generator.standard_normal(sounding).astype(np.float32)
    alone = np.stack([soxr.resample(row, 44_100, to_hz, quality="HQ") for row in rows])
    np.testing.assert_array_equal(resampling.resample_rows(rows, 44_100, to_hz, alone.shape[1]), alone)
