"""Augmented views against literal formulas: np.convolve, RMS in dB, a filter's gain, a room's decay."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import augmented, impulse, rooms
from pipeline.audio.augmented import AugmentedParameters
from pipeline.audio.impulse import ResponseFolder
from pipeline.config import ViewsConfig
from pipeline.errors import AudioError, ConfigError
from pipeline.view_config import RoomConfig
from tests.golden.golden_vectors import REPOSITORY

RATE_HZ = 44_100
SAMPLES = 40_000


def noise(seed: int, scale: float = 0.1, samples: int = SAMPLES) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def rms_db(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(waveform.astype(np.float64) ** 2)))


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 300), taps=st.integers(1, 500), seed=st.integers(0, 99))
def test_convolution_is_numpys_cut_to_the_waveform(samples: int, taps: int, seed: int) -> None:
    waveform, response = noise(seed, 0.5, samples), noise(seed + 100, 0.5, taps)
    expected = np.convolve(waveform.astype(np.float64), response.astype(np.float64))[:samples]
    found = impulse.convolve(waveform, response)
    assert found.dtype == np.float32 and found.shape == (samples,)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("snr_db", [-6.0, 0.0, 13.5])
def test_a_background_lies_at_the_drawn_ratio(snr_db: float) -> None:
    clip, background = noise(0), noise(1, 0.003)
    parameters = AugmentedParameters(snr_db=snr_db)
    found = augmented.render([clip, background], parameters, RATE_HZ)
    under = found.astype(np.float64) - clip
    assert rms_db(clip) - rms_db(under) == pytest.approx(snr_db, abs=0.05)
    shape = background / np.linalg.norm(background)
    assert abs(np.dot(under / np.linalg.norm(under), shape)) == pytest.approx(1.0, abs=1e-6)


def test_gain_is_in_db_and_the_peak_stays_below_full_scale() -> None:
    clip = noise(2)
    quieter = augmented.render([clip], AugmentedParameters(gain_db=-7.0), RATE_HZ)
    np.testing.assert_allclose(quieter, clip * 10 ** (-7 / 20), rtol=1e-6)
    loud = augmented.render([clip], AugmentedParameters(gain_db=60.0), RATE_HZ)
    assert np.abs(loud).max() == pytest.approx(0.98, abs=1e-5)
    np.testing.assert_allclose(loud / np.abs(loud).max(), clip / np.abs(clip).max(), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 30.0))
def test_nothing_leaves_full_scale_and_rendering_draws_nothing(seed: int, scale: float) -> None:
    views = ViewsConfig(
        augmented=1.0, gain_db=(-20.0, 40.0), background={"probability": 0.7, "snr_db": (-10.0, 20.0)},
        band={"probability": 0.5},
    )  # fmt: skip
    parameters = augmented.draw(np.random.default_rng(seed), "train", views, ())
    windows = [noise(seed, scale, 9_000), noise(seed + 1, scale, 9_000)]
    first = augmented.render(windows, parameters, RATE_HZ)
    assert first.dtype == np.float32 and np.abs(first).max() <= 0.9801
    again = AugmentedParameters.model_validate_json(parameters.model_dump_json())
    assert np.array_equal(augmented.render(windows, again, RATE_HZ), first)


def test_a_band_is_a_butterworth_of_fourth_order_at_its_edges() -> None:
    parameters = AugmentedParameters(low_pass_hz=4_000.0, high_pass_hz=200.0)
    click = np.zeros(SAMPLES, dtype=np.float32)
    click[SAMPLES // 2] = 0.5
    heard = augmented.render([click], parameters, RATE_HZ)
    gain = np.abs(np.fft.rfft(heard)) / 0.5
    hz = np.arange(len(gain)) * RATE_HZ / SAMPLES
    for probe, expected_db in ((200, -3.01), (1_000, 0.0), (4_000, -3.01), (8_000, -24.1), (100, -24.1)):
        assert 20 * np.log10(gain[np.argmin(np.abs(hz - probe))]) == pytest.approx(expected_db, abs=0.15)


def test_silence_has_no_ratio() -> None:
    for windows in (
        [np.zeros(9_000, np.float32), noise(0, 0.1, 9_000)],
        [noise(0, 0.1, 9_000), np.zeros(9_000, np.float32)],
    ):
        with pytest.raises(AudioError) as caught:
            augmented.render(windows, AugmentedParameters(snr_db=3.0), RATE_HZ)
        assert caught.value.reason == "silent"


# Devices


def responses(folder: Path) -> ResponseFolder:
    folder.mkdir(exist_ok=True)
    for name, rate, taps in (("a.wav", 44_100, 900), ("deep/b.wav", 48_000, 1_200)):
        (folder / name).parent.mkdir(exist_ok=True)
        decay = np.exp(-np.arange(taps) / 90.0) * np.random.default_rng(taps).standard_normal(taps)
        decay = np.concatenate([np.zeros(200), decay])  # room for the resampler's filter before the onset
        soundfile.write(folder / name, decay / np.abs(decay).max(), rate, subtype="PCM_24")
    (folder / "licence.txt").write_text("not sound")
    return ResponseFolder(folder)


def test_a_device_is_its_response_at_the_working_rate(tmp_path: Path) -> None:
    folder = responses(tmp_path / "devices")
    assert sorted(one.name for one in folder.responses) == ["a.wav", "deep/b.wav"]
    clip = noise(3, 0.02)
    for one in folder.responses:
        native, rate = soundfile.read(one.path)
        taps = soxr.resample(native, rate, RATE_HZ) * rate / RATE_HZ
        expected = np.convolve(clip.astype(np.float64), taps)[: len(clip)]
        parameters = AugmentedParameters(device=one.name, device_digest=one.digest)
        found = augmented.render([clip], parameters, RATE_HZ, folder.waveform)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    # The gain at low frequencies is the file's own, whatever its rate.
    native, _ = soundfile.read(tmp_path / "devices" / "deep" / "b.wav")
    digest = next(one.digest for one in folder.responses if one.name == "deep/b.wav")
    assert folder.waveform(digest, 16_000).sum() == pytest.approx(native.sum(), rel=0.005)


def test_a_changed_or_useless_folder_of_devices_is_refused(tmp_path: Path) -> None:
    folder = responses(tmp_path / "devices")
    digest = folder.responses[0].digest
    for path in (tmp_path / "devices").rglob("*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples * 0.5, rate, subtype="PCM_24")
    with pytest.raises(ConfigError, match="no longer holds"):
        ResponseFolder(tmp_path / "devices").waveform(digest, RATE_HZ)
    with pytest.raises(ConfigError, match="is no folder"):
        ResponseFolder(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match="holds no impulse response"):
        ResponseFolder(tmp_path / "bare")
    for name, content in (("long.wav", np.ones(11 * 8_000) * 0.1), ("silent.wav", np.zeros(500))):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / name, content, 8_000)
        with pytest.raises(ConfigError, match="impulse response"):
            ResponseFolder(tmp_path / name)
    with pytest.raises(ConfigError, match="no impulse responses are given"):
        augmented.render([noise(0)], AugmentedParameters(device="a.wav", device_digest=digest), RATE_HZ)


# Rooms


def room(number: int = 0, **changes: object) -> rooms.Room:
    return rooms.draw(7, "train", number, RoomConfig(probability=1.0, **changes))


def test_rooms_are_drawn_within_their_ranges_and_differ_by_split() -> None:
    config = RoomConfig(probability=1.0)
    for number in range(60):
        drawn = room(number)
        width, length, height = drawn.size_metres[1], drawn.size_metres[0], drawn.size_metres[2]
        assert 3.0 <= length <= 10.0 and 2.5 <= width <= 7.0 and 2.4 <= height <= 4.0
        volume, surface = width * length * height, 2 * (width * length + width * height + length * height)
        absorption = 24 * np.log(10) * volume / (343 * surface * drawn.rt60_seconds)
        assert 0 < absorption <= 0.951 and drawn.rt60_seconds <= 0.6001
        for point in (drawn.microphone_metres, *drawn.sources_metres):
            assert all(0.299 <= p <= side - 0.299 for p, side in zip(point, drawn.size_metres, strict=True))
        for source in drawn.sources_metres:
            assert 0.499 <= np.linalg.norm(np.subtract(source, drawn.microphone_metres)) <= 4.001
        assert rooms.draw(7, "validation", number, config) != drawn


def test_a_room_decays_in_the_time_that_was_drawn() -> None:
    pytest.importorskip("pyroomacoustics")
    for number in (1, 3):
        drawn = room(number, rt60_seconds=(0.25, 0.4), image_order=60)
        for response in rooms.responses(drawn, 16_000):
            energy = np.cumsum(response[::-1].astype(np.float64) ** 2)[::-1]  # Schroeder, 1965
            decay_db = 10 * np.log10(energy / energy[0] + 1e-15)
            start, stop = (int(np.argmax(decay_db <= level)) for level in (-5.0, -25.0))
            measured = 3 * (stop - start) / 16_000
            assert measured == pytest.approx(drawn.rt60_seconds, rel=0.4)
            assert np.argmax(np.abs(response)) <= 0.03 * 16_000


def test_a_room_keeps_the_windows_level_and_reverberates_the_background_apart() -> None:
    pytest.importorskip("pyroomacoustics")
    drawn = room(2, rt60_seconds=(0.2, 0.3), image_order=12)
    clip, background = noise(4, 0.05), noise(5, 0.05)
    wet = augmented.render([clip], AugmentedParameters(room=drawn), RATE_HZ)
    assert rms_db(wet) == pytest.approx(rms_db(clip), abs=0.3)
    first, second = rooms.responses(drawn, RATE_HZ)
    expected = np.convolve(clip.astype(np.float64), first)[: len(clip)]
    np.testing.assert_allclose(wet / np.linalg.norm(wet), expected / np.linalg.norm(expected), atol=1e-6)
    both = augmented.render([clip, background], AugmentedParameters(room=drawn, snr_db=4.0), RATE_HZ)
    under = both.astype(np.float64) - wet
    placed = np.convolve(background.astype(np.float64), second)[: len(background)]
    assert np.dot(under, placed) / np.linalg.norm(under) / np.linalg.norm(placed) == pytest.approx(
        1.0, abs=1e-5
    )
    assert rms_db(wet) - rms_db(under) == pytest.approx(4.0, abs=0.3)


RENDER_ROOM = """
import hashlib, sys
import pyroomacoustics
pyroomacoustics.constants.set("num_threads", int(sys.argv[1]))
from tests.audio.test_augmented import room
from pipeline.audio import rooms
for number in (5, 6):
    for response in rooms.responses(room(number, image_order=15), 44_100):
        print(hashlib.sha256(response.tobytes()).hexdigest())
"""


def test_a_rooms_responses_do_not_depend_on_the_process_or_its_threads() -> None:
    pytest.importorskip("pyroomacoustics")
    here = [
        hashlib.sha256(response.tobytes()).hexdigest()
        for number in (5, 6)
        for response in rooms.responses(room(number, image_order=15), 44_100)
    ]
    done = subprocess.run(
        [sys.executable, "-c", RENDER_ROOM, "8"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == here and len(set(here)) == 4
