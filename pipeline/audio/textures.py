"""Procedural textures: steady backgrounds and simple events that packaged sound lacks.

One to three layers, 0 to 15 dB down, each of one of six kinds: ``noise`` (wind, rain, sea), ``impulses``
(crackle, drops), ``harmonics`` (engines), ``chopped`` (rotors), ``calls`` (calls, bells) and ``knocks``.
A quarter carry a clean window at -6 to 6 dB, half an equaliser; the final level is drawn as a mix's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import scipy.fft
from jaxtyping import Float32

from pipeline.audio import equaliser, levels, noise
from pipeline.audio.equaliser import log_uniform
from pipeline.config import ViewsConfig
from pipeline.errors import AudioError

VERSION = "texture/2"
LAYER_COUNTS = (1, 2, 3)
LAYER_BELOW_DB = (0.0, 15.0)
CLEAN_PROBABILITY = 0.25
CLEAN_DB = (-6.0, 6.0)
EQ_PROBABILITY = 0.5
TABLE_SAMPLES = 4_096
RING_SAMPLES = 8_192


def texture(
    seed: int,
    samples: int,
    rate_hz: int,
    views: ViewsConfig,
    clean: Float32[np.ndarray, " samples"] | None = None,
) -> Float32[np.ndarray, " samples"]:
    """Return the texture that ``seed`` draws, over a clean window where one is given.

    Args:
        seed: of every draw.
        samples: length.
        rate_hz: sample rate.
        views: ranges of the final level and of the equaliser.
        clean: a window to lay over it, -6 to 6 dB relative to the texture, over active frames.

    Raises:
        AudioError: ``clean`` is silent (reason ``silent``).
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(samples, dtype=np.float32)
    kinds = list(LAYERS.values())
    for _ in range(int(generator.choice(LAYER_COUNTS))):
        layer = kinds[int(generator.integers(len(kinds)))](generator, samples, rate_hz)
        gain = levels.from_db(-generator.uniform(*LAYER_BELOW_DB))
        total += layer * np.float32(gain / levels.rms(layer))
    gain_db = float(generator.uniform(*CLEAN_DB))
    if clean is not None:
        level = levels.active_rms(clean)
        if level == 0.0:
            raise AudioError("silent", "the clean window of a texture is silent")
        total += clean * np.float32(levels.active_rms(total) / level * levels.from_db(gain_db))
    if generator.random() < EQ_PROBABILITY:
        total = equaliser.apply(equaliser.draw(generator, views.eq_gain_db), total, rate_hz)
    return levels.set_level(total, float(generator.uniform(*views.level_dbfs)))


def envelope(
    generator: np.random.Generator, samples: int, rate_hz: int, knots_hz: float, depth_db: float
) -> Float32[np.ndarray, " samples"]:
    """Return a smooth random gain at most 1: knots at ``knots_hz``, uniform within ``depth_db`` of it."""
    count = max(2, math.ceil(samples / rate_hz * knots_hz) + 2)
    gain: np.ndarray = _smooth(generator.uniform(-depth_db, 0.0, count) * (math.log(10.0) / 20.0), samples)
    np.exp(gain, out=gain)
    return gain


def noise_layer(generator: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """Wind, rain, sea: band-limited coloured noise under a random envelope."""
    low = log_uniform(generator, 20.0, 2_000.0)
    high = min(low * log_uniform(generator, 2.0, 200.0), rate_hz / 2)
    hiss = noise.coloured(generator, samples, rate_hz, float(generator.uniform(0.0, 1.5)), (low, high))
    hiss *= envelope(
        generator, samples, rate_hz, log_uniform(generator, 0.4, 8.0), float(generator.uniform(0.0, 30.0))
    )
    return hiss


def impulses_layer(generator: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """Crackle, drops: 3 to 1,600 random impulses through a decaying noise or sine."""
    count = round(log_uniform(generator, 3, 1_600))
    train = np.zeros(samples, dtype=np.float32)
    gains = np.exp(generator.uniform(-3.0, 0.0, count)) * generator.choice((-1.0, 1.0), count)
    np.add.at(train, generator.integers(samples, size=count), gains.astype(np.float32))
    return _through(train, _ring(generator, rate_hz))


def harmonics_layer(generator: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """Engines: a harmonic stack on 16 to 630 Hz with drifting pitch and envelope."""
    base = log_uniform(generator, 16.0, 630.0)
    drift = float(generator.uniform(0.0, 0.5))
    knots = max(2, math.ceil(samples / rate_hz * log_uniform(generator, 0.5, 6.0)) + 2)
    pitch_hz = base * np.exp2(_smooth(generator.uniform(-drift, drift, knots), samples))
    partials = max(1, min(60, int(rate_hz / 2 / (base * 2.0**drift))))
    slope = float(generator.uniform(0.3, 2.0))
    spectrum = np.zeros(TABLE_SAMPLES // 2 + 1, dtype=np.complex64)
    orders = np.arange(1, partials + 1)
    strengths = orders**-slope * np.exp(generator.uniform(-1.5, 0.0, partials))
    spectrum[orders] = strengths * np.exp(2j * np.pi * generator.random(partials))
    period = equaliser.from_spectrum(spectrum, TABLE_SAMPLES)
    # One period by table: sixty oscillators would cost sixty sines a sample.
    cycles = np.cumsum(pitch_hz / rate_hz, dtype=np.float64)
    position = (cycles - np.floor(cycles)) * TABLE_SAMPLES
    index = position.astype(np.intp)
    share = (position - index).astype(np.float32)
    tone: np.ndarray = (
        period[index % TABLE_SAMPLES] * (1 - share) + period[(index + 1) % TABLE_SAMPLES] * share
    )
    tone *= envelope(generator, samples, rate_hz, log_uniform(generator, 0.5, 8.0), 18.0)
    return tone


def chopped_layer(generator: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """Rotors: noise chopped at 2 to 50 Hz by raised-cosine pulses."""
    low = log_uniform(generator, 30.0, 1_000.0)
    high = min(low * log_uniform(generator, 3.0, 60.0), rate_hz / 2)
    hiss = noise.coloured(generator, samples, rate_hz, float(generator.uniform(0.0, 1.0)), (low, high))
    chop_hz = log_uniform(generator, 2.0, 50.0)
    sharpness = log_uniform(generator, 0.5, 8.0)
    floor = levels.from_db(-generator.uniform(6.0, 40.0))
    phase = np.arange(samples, dtype=np.float32) * np.float32(2 * np.pi * chop_hz / rate_hz)
    phase += np.float32(generator.uniform(0, 2 * np.pi))
    pulses = (0.5 - 0.5 * np.cos(phase)) ** np.float32(sharpness)
    hiss *= np.float32(floor) + np.float32(1 - floor) * pulses
    return hiss


def calls_layer(generator: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """One to five gliding harmonic calls, or bells of inharmonic partials."""
    total = np.zeros(samples, dtype=np.float32)
    bells = generator.random() < 0.4
    for _ in range(int(generator.integers(1, 6))):
        seconds = log_uniform(generator, 0.3, 2.0) if bells else log_uniform(generator, 0.05, 0.8)
        length = min(samples, max(64, round(seconds * rate_hz)))
        start = int(generator.integers(samples - length + 1))
        event = _bell(generator, length, rate_hz) if bells else _call(generator, length, rate_hz)
        total[start : start + length] += event * np.float32(levels.from_db(-generator.uniform(0.0, 12.0)))
    return total


def knocks_layer(generator: np.random.Generator, samples: int, rate_hz: int) -> np.ndarray:
    """Periodic knocks, one every 32 ms to 1 s, with a little jitter in time and strength."""
    period = log_uniform(generator, 0.032, 1.0) * rate_hz
    times = np.arange(generator.uniform(0, min(period, samples - 1)), samples, period)
    times = times + generator.normal(0.0, generator.uniform(0.0, 0.03) * period, len(times))
    positions = times.clip(0, samples - 1).astype(np.intp)
    train = np.zeros(samples, dtype=np.float32)
    np.add.at(train, positions, np.exp(generator.uniform(-0.5, 0.0, len(positions))).astype(np.float32))
    return _through(train, _ring(generator, rate_hz))


LAYERS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "noise": noise_layer,
    "impulses": impulses_layer,
    "harmonics": harmonics_layer,
    "chopped": chopped_layer,
    "calls": calls_layer,
    "knocks": knocks_layer,
}


def _smooth(knots: np.ndarray, samples: int) -> Float32[np.ndarray, " samples"]:
    """Return ``samples`` values that pass through ``knots``, evenly spaced, joined by half cosines."""
    index, share = _knot_grid(samples, len(knots))
    values = knots.astype(np.float32)
    steps = np.append(np.diff(values), np.float32(0.0))
    curve: np.ndarray = steps[index]
    curve *= share
    curve += values[index]
    return curve


@functools.lru_cache(maxsize=64)
def _knot_grid(samples: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    position = np.linspace(0, count - 1, samples, endpoint=False)
    index = position.astype(np.int32)
    share = (0.5 - 0.5 * np.cos(np.pi * (position - index))).astype(np.float32)
    index.setflags(write=False)
    share.setflags(write=False)
    return index, share


def _ring(generator: np.random.Generator, rate_hz: int) -> np.ndarray:
    """Return what one impulse sounds like: noise or a sine that decays within 1 to 120 ms."""
    length = min(RING_SAMPLES, rate_hz)
    seconds = np.arange(length) / rate_hz
    decay = np.exp(-seconds / log_uniform(generator, 0.001, 0.12))
    if generator.random() < 0.5:
        return (generator.standard_normal(length) * decay).astype(np.float32)
    pitch_hz = log_uniform(generator, 80.0, 8_000.0)
    return (np.sin(2 * np.pi * pitch_hz * seconds) * decay).astype(np.float32)


def _through(train: np.ndarray, ring: np.ndarray) -> np.ndarray:
    length = equaliser.fast_length(len(train))
    spectrum = scipy.fft.rfft(train, length)
    spectrum *= scipy.fft.rfft(ring, length)
    return equaliser.from_spectrum(spectrum, length)[: len(train)]


def _call(generator: np.random.Generator, length: int, rate_hz: int) -> np.ndarray:
    start_hz = log_uniform(generator, 150.0, 5_000.0)
    end_hz = start_hz * log_uniform(generator, 0.4, 2.5)
    share = np.arange(length) / length
    phase = 2 * np.pi * np.cumsum(start_hz * (end_hz / start_hz) ** share) / rate_hz
    partials = max(1, min(int(generator.integers(1, 7)), int(rate_hz / 2 / max(start_hz, end_hz))))
    tone = np.zeros(length)
    for order in range(1, partials + 1):
        tone += np.sin(order * phase) * math.exp(generator.uniform(-2.0, 0.0)) / order
    return (tone * np.sin(np.pi * share) ** generator.uniform(0.3, 2.0)).astype(np.float32)


def _bell(generator: np.random.Generator, length: int, rate_hz: int) -> np.ndarray:
    base_hz = log_uniform(generator, 200.0, 3_000.0)
    seconds = np.arange(length) / rate_hz
    tone = np.zeros(length)
    for _ in range(int(generator.integers(2, 7))):
        partial_hz = min(base_hz * log_uniform(generator, 1.0, 6.0), rate_hz / 2.1)
        decay = np.exp(-seconds / log_uniform(generator, 0.05, 0.8))
        tone += np.sin(2 * np.pi * partial_hz * seconds) * decay * math.exp(generator.uniform(-2.0, 0.0))
    tone *= np.minimum(1.0, np.arange(length)[::-1] / 64)
    return tone.astype(np.float32)
