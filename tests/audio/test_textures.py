"""Textures: six kinds, each what it says, levels as drawn."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from pipeline.audio import textures
from pipeline.config import ViewsConfig
from pipeline.errors import AudioError

RATE = 44_100
SAMPLES = 101_376
VIEWS = ViewsConfig()


@pytest.mark.parametrize("kind", sorted(textures.LAYERS))
def test_every_layer_is_finite_loud_and_its_seeds_alone(kind: str) -> None:
    layer = textures.LAYERS[kind]
    for seed in range(25):
        wave = layer(np.random.default_rng(seed), SAMPLES, RATE)
        assert wave.shape == (SAMPLES,) and wave.dtype == np.float32
        assert np.isfinite(wave).all() and float(np.abs(wave).max()) > 1e-4
        assert np.array_equal(wave, layer(np.random.default_rng(seed), SAMPLES, RATE))


def test_the_six_kinds_are_there() -> None:
    assert set(textures.LAYERS) == {"noise", "impulses", "harmonics", "chopped", "calls", "knocks"}


@pytest.mark.parametrize("seed", range(8))
def test_engines_are_tonal_and_noise_is_not(seed: int) -> None:
    def flatness(wave: np.ndarray) -> float:
        _, power = scipy.signal.welch(wave, RATE, nperseg=4_096)
        band = power[4:400] + 1e-20
        return float(np.exp(np.log(band).mean()) / band.mean())

    engine = textures.harmonics_layer(np.random.default_rng(seed), SAMPLES, RATE)
    white = np.random.default_rng(seed).standard_normal(SAMPLES)
    assert flatness(engine) < 0.5 * flatness(white)


@pytest.mark.parametrize("seed", range(8))
def test_chopped_noise_repeats_at_a_rotors_rate(seed: int) -> None:
    wave = textures.chopped_layer(np.random.default_rng(seed), 4 * SAMPLES, RATE).astype(np.float64)
    power = (wave[: len(wave) // 441 * 441] ** 2).reshape(-1, 441).mean(axis=1)  # 100 values a second
    spectrum = np.abs(np.fft.rfft((power - power.mean()) * np.hanning(len(power))))
    peak_hz = np.fft.rfftfreq(len(power), 0.01)[spectrum.argmax()]
    assert 1.5 <= peak_hz <= 50


@pytest.mark.parametrize("seed", range(8))
def test_knocks_are_periodic(seed: int) -> None:
    generator = np.random.default_rng(seed)
    period = np.exp(generator.uniform(np.log(0.032), 0.0))  # the layer's first draw
    wave = textures.knocks_layer(np.random.default_rng(seed), 6 * RATE, RATE).astype(np.float64)
    energy = (wave[: len(wave) // 44 * 44] ** 2).reshape(-1, 44).sum(axis=1)
    energy = np.convolve(energy - energy.mean(), np.ones(5), "same")
    correlation = np.correlate(energy, energy, "full")[len(energy) - 1 :]
    at = round(period * RATE / 44)
    if at < len(correlation) // 2:
        near = correlation[max(1, round(at * 0.93)) : round(at * 1.07) + 2].max()
        assert near > 0.1 * correlation[0]


def test_final_levels_span_the_drawn_range() -> None:
    waves = [textures.texture(seed, 8_192, RATE, VIEWS) for seed in range(150)]
    level_db = np.array([10 * np.log10(np.mean(w.astype(np.float64) ** 2)) for w in waves])
    assert max(float(np.abs(w).max()) for w in waves) <= 0.98001
    assert level_db.min() > -60 and level_db.max() < -9.9
    assert np.mean((level_db > -42.1) & (level_db < -9.9)) > 0.9  # the rest met the peak limit
    assert level_db.std() > 6


@pytest.mark.parametrize("seed", range(10))
def test_a_clean_window_lies_within_six_decibels_of_the_texture(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textures, "EQ_PROBABILITY", 0.0)
    clean = np.random.default_rng(99).standard_normal(SAMPLES).astype(np.float32)
    without = textures.texture(seed, SAMPLES, RATE, VIEWS).astype(np.float64)
    mixed = textures.texture(seed, SAMPLES, RATE, VIEWS, clean).astype(np.float64)
    # Without an equaliser the two differ by the clean window and by final gains: solve for both.
    (a, b), *_ = np.linalg.lstsq(np.stack([without, clean], axis=1), mixed, rcond=None)
    np.testing.assert_allclose(a * without + b * clean, mixed, atol=1e-4 * np.abs(mixed).max())
    level_db = 20 * np.log10(b * active_rms(clean) / (a * active_rms(without)))
    assert -6.01 <= level_db <= 6.01


def active_rms(wave: np.ndarray) -> float:
    frames = wave.astype(np.float64).reshape(-1, 1_024)
    power = (frames**2).mean(axis=1)
    return float(np.sqrt(power[power >= power.max() / 100].mean()))


def test_a_silent_clean_window_is_refused() -> None:
    with pytest.raises(AudioError) as caught:
        textures.texture(0, SAMPLES, RATE, VIEWS, np.zeros(SAMPLES, np.float32))
    assert caught.value.reason == "silent"
