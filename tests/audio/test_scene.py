"""Mixes against slow literal formulas: levels, equaliser, noise, final level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal

from pipeline.audio import equaliser, levels, noise, scene
from pipeline.audio.equaliser import Equaliser
from pipeline.config import ViewsConfig
from pipeline.errors import AudioError

RATE = 44_100
SAMPLES = 44_544
VIEWS = ViewsConfig()


def burst(seed: int, samples: int = SAMPLES) -> np.ndarray:
    """A short sound in a long silence: its level over all samples is not its own."""
    generator = np.random.default_rng(seed)
    wave = np.zeros(samples, np.float32)
    start = int(generator.integers(0, samples // 2))
    length = int(generator.integers(4_000, samples // 3))
    wave[start : start + length] = generator.standard_normal(length) * generator.uniform(0.01, 0.3)
    return wave


def literal_active_rms_db(wave: np.ndarray) -> float:
    frames = [wave[i : i + 1_024].astype(np.float64) for i in range(0, len(wave), 1_024)]
    powers = [sum(float(v) ** 2 for v in frame) / len(frame) for frame in frames]
    loud = [frame for frame, power in zip(frames, powers, strict=True) if power >= max(powers) / 100]
    values = np.concatenate(loud)
    return 10 * math.log10(float(np.mean(values**2)))


@pytest.mark.parametrize("seed", range(20))
def test_the_measured_level_of_each_layer_is_the_drawn_one(seed: int) -> None:
    count = 1 + seed % 3
    parameters = scene.draw(np.random.default_rng(seed), count, SAMPLES, VIEWS)
    stems = [scene.stem(burst(100 * seed + i), layer, RATE) for i, layer in enumerate(parameters.layers)]
    measured = [literal_active_rms_db(stem) for stem in stems]
    assert measured[0] == pytest.approx(0.0, abs=0.01)
    for level_db, layer in zip(measured[1:], parameters.layers[1:], strict=True):
        assert level_db - measured[0] == pytest.approx(layer.gain_db, abs=0.01)
        assert VIEWS.snr_db[0] <= layer.gain_db <= VIEWS.snr_db[1]


def test_a_roll_is_circular_and_loses_nothing() -> None:
    layer = scene.Layer(roll_samples=12_345, gain_db=0.0, equaliser=None)
    wave = burst(3)
    rolled = scene.stem(wave, layer, RATE)
    expected = np.array([wave[(i - 12_345) % SAMPLES] for i in range(SAMPLES)])
    np.testing.assert_allclose(rolled, expected * (rolled.max() / expected.max()), rtol=1e-5, atol=1e-7)


def test_what_is_drawn_has_the_recipes_probabilities() -> None:
    drawn = [scene.draw(np.random.default_rng(seed), 3, SAMPLES, VIEWS) for seed in range(4_000)]
    layers = [layer for parameters in drawn for layer in parameters.layers]
    added = [layer for parameters in drawn for layer in parameters.layers[1:]]
    share = np.mean
    assert share([layer.roll_samples > 0 for layer in layers]) == pytest.approx(0.7, abs=0.02)
    assert share([layer.equaliser is not None for layer in added]) == pytest.approx(0.3, abs=0.02)
    assert all(parameters.layers[0].equaliser is None for parameters in drawn)
    assert share([p.noise_slope is not None for p in drawn]) == pytest.approx(0.3, abs=0.03)
    assert share([p.equaliser is not None for p in drawn]) == pytest.approx(0.6, abs=0.03)
    shaped = [p.equaliser for p in drawn if p.equaliser is not None]
    assert share([e.low_pass_hz is not None for e in shaped]) == pytest.approx(0.3, abs=0.04)
    assert share([e.high_pass_hz is not None for e in shaped]) == pytest.approx(0.3, abs=0.04)
    gains = np.array([layer.gain_db for layer in added])
    assert gains.min() < -11.9 and gains.max() > 5.9 and gains.mean() == pytest.approx(-3, abs=0.3)


@pytest.mark.parametrize("seed", range(30))
def test_the_finished_mix_has_a_drawn_level_or_touches_the_limit(seed: int) -> None:
    mixed = scene.mix([burst(seed), burst(seed + 1)], seed, VIEWS, RATE)
    wanted = scene.draw(np.random.default_rng(seed), 2, SAMPLES, VIEWS).level_dbfs
    found = 10 * math.log10(float(np.mean(mixed.astype(np.float64) ** 2)))
    peak = float(np.abs(mixed).max())
    assert peak <= 0.98001 and mixed.dtype == np.float32 and mixed.shape == (SAMPLES,)
    assert found == pytest.approx(wanted, abs=0.01) or (
        found < wanted and peak == pytest.approx(0.98, abs=1e-4)
    )


def test_a_mix_is_a_function_of_its_seed() -> None:
    windows = [burst(1), burst(2), burst(3)]
    first = scene.mix(windows, 7, VIEWS, RATE)
    assert np.array_equal(first, scene.mix(windows, 7, VIEWS, RATE))
    assert not np.allclose(first, scene.mix(windows, 8, VIEWS, RATE))


def test_a_silent_window_is_refused() -> None:
    with pytest.raises(AudioError) as caught:
        scene.mix([burst(1), np.zeros(SAMPLES, np.float32)], 0, VIEWS, RATE)
    assert caught.value.reason == "silent"


@pytest.mark.parametrize("hz", [20.0, 63.0, 180.0, 1_000.0, 7_300.0, 21_000.0])
@pytest.mark.parametrize(("low_pass", "high_pass"), [(None, None), (2_000.0, None), (None, 400.0)])
def test_a_sine_comes_out_at_the_curves_gain(
    hz: float, low_pass: float | None, high_pass: float | None
) -> None:
    nodes = (3.0, -9.0, 11.0, 0.0, -4.0, 7.0, -12.0, 5.0)
    samples = 49_152
    assert equaliser.fast_length(samples) == samples
    hz = round(hz * samples / RATE) * RATE / samples  # whole periods, so that the ends join
    sine = np.sin(2 * np.pi * hz * np.arange(samples) / RATE).astype(np.float32)
    out = equaliser.apply(Equaliser(nodes, low_pass, high_pass), sine, RATE)
    at = np.geomspace(40.0, 20_000.0, 8)
    expected_db = float(np.interp(np.log(hz), np.log(at), nodes))
    if low_pass is not None:
        expected_db -= 10 * math.log10(1 + (hz / low_pass) ** 8)
    if high_pass is not None:
        expected_db -= 10 * math.log10(1 + (high_pass / hz) ** 8)
    gain = float(np.dot(out.astype(np.float64), sine) / np.dot(sine.astype(np.float64), sine))
    assert gain == pytest.approx(10 ** (expected_db / 20), rel=2e-3, abs=1e-6)


def test_a_padded_window_is_filtered_like_its_inside() -> None:
    curve = Equaliser((3.0, -9.0, 11.0, 0.0, -4.0, 7.0, -12.0, 5.0), 3_000.0, None)
    sine = np.sin(2 * np.pi * 441.0 * np.arange(101_376) / RATE).astype(np.float32)
    assert equaliser.fast_length(101_376) == 102_400
    out = equaliser.apply(curve, sine, RATE)
    middle = slice(20_000, 80_000)
    gain = np.dot(out[middle], sine[middle]) / np.dot(sine[middle], sine[middle])
    expected_db = np.interp(np.log(441.0), np.log(np.geomspace(40.0, 20_000.0, 8)), curve.node_gains_db)
    assert out.shape == sine.shape
    assert 20 * np.log10(gain) == pytest.approx(expected_db - 10 * np.log10(1 + (441 / 3_000) ** 8), abs=0.01)


@pytest.mark.parametrize("samples", [1, 2, 3, 1_000, 44_544, 101_376, 131_073])
def test_a_fast_length_is_the_next_with_small_factors(samples: int) -> None:
    def small(number: int) -> bool:
        for factor in (5, 5, 3, 3):
            number = number // factor if number % factor == 0 else number
        return number & (number - 1) == 0

    found = equaliser.fast_length(samples)
    assert found >= samples and small(found)
    skipped = [n for n in range(samples, found) if small(n) and n % 225]
    assert not skipped


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0, 1.5])
def test_coloured_noise_falls_as_its_slope_says(slope: float) -> None:
    wave = noise.coloured(np.random.default_rng(4), 10 * RATE, RATE, slope)
    assert float(np.sqrt(np.mean(wave.astype(np.float64) ** 2))) == pytest.approx(1.0, abs=1e-3)
    hz, power = scipy.signal.welch(wave, RATE, nperseg=8_192)
    band = (hz > 100) & (hz < 15_000)
    found = np.polyfit(np.log(hz[band]), 0.5 * np.log(power[band]), 1)[0]
    assert found == pytest.approx(-slope, abs=0.03)


def test_noise_in_a_band_stays_in_it() -> None:
    wave = noise.coloured(np.random.default_rng(4), 4 * RATE, RATE, 0.0, (500.0, 2_000.0))
    hz, power = scipy.signal.welch(wave, RATE, nperseg=8_192, detrend=False)
    inside = power[(hz > 700) & (hz < 1_500)].mean()
    assert power[(hz > 8_000)].max() < inside * 1e-4 and power[hz < 120].max() < inside * 1e-4


def test_setting_a_level_keeps_the_peak_below_the_limit() -> None:
    wave = burst(5)
    loud = levels.set_level(wave, 0.0)
    assert float(np.abs(loud).max()) == pytest.approx(0.98, abs=1e-5)
    quiet = levels.set_level(wave, -40.0)
    assert 20 * math.log10(float(np.sqrt(np.mean(quiet.astype(np.float64) ** 2)))) == pytest.approx(
        -40.0, abs=1e-3
    )
    assert not levels.set_level(np.zeros(10, np.float32), -10.0).any()
