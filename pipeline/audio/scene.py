"""Mixes: one to three windows at drawn levels, rolled, equalised, with noise, at a drawn level.

The teacher hears the finished signal, so its embedding is the mix's true target. The recipe is the one that
was measured to help students of this size: one, two or three windows with probability .2, .6, .2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from pipeline.audio import equaliser, levels, noise
from pipeline.audio.equaliser import Equaliser
from pipeline.config import ViewsConfig
from pipeline.errors import AudioError

VERSION = "mix/2"
COUNT_PROBABILITIES = (0.2, 0.6, 0.2)
ROLL_PROBABILITY = 0.7
LAYER_EQ_PROBABILITY = 0.3
NOISE_PROBABILITY = 0.3
NOISE_SLOPE = (0.0, 1.0)
NOISE_BELOW_DB = (3.0, 30.0)


@dataclass(frozen=True)
class Layer:
    """What happens to one window: circular roll, equaliser, then unit active RMS times ``gain_db``."""

    roll_samples: int
    gain_db: float
    equaliser: Equaliser | None


@dataclass(frozen=True)
class MixParameters:
    """Everything drawn for one mix.

    ``layers[0]`` has gain 0 dB; the others' ``gain_db`` is their level relative to it, both over active
    frames. ``noise_below_db`` is the noise's RMS below that of the summed layers.
    """

    layers: tuple[Layer, ...]
    noise_slope: float | None
    noise_below_db: float
    equaliser: Equaliser | None
    level_dbfs: float


def draw(generator: np.random.Generator, count: int, samples: int, views: ViewsConfig) -> MixParameters:
    """Return the parameters of a mix of ``count`` windows of ``samples`` samples."""
    layers = []
    for position in range(count):
        rolled = generator.random() < ROLL_PROBABILITY
        roll = int(generator.integers(samples)) if rolled else 0
        gain = float(generator.uniform(*views.snr_db)) if position else 0.0
        own = position > 0 and generator.random() < LAYER_EQ_PROBABILITY
        layers.append(Layer(roll, gain, equaliser.draw(generator, views.eq_gain_db) if own else None))
    noisy = generator.random() < NOISE_PROBABILITY
    slope = float(generator.uniform(*NOISE_SLOPE)) if noisy else None
    below = float(generator.uniform(*NOISE_BELOW_DB))
    overall = (
        equaliser.draw(generator, views.eq_gain_db) if generator.random() < views.eq_probability else None
    )
    return MixParameters(tuple(layers), slope, below, overall, float(generator.uniform(*views.level_dbfs)))


def stem(
    window: Float32[np.ndarray, " samples"], layer: Layer, rate_hz: int
) -> Float32[np.ndarray, " samples"]:
    """Return one window as it enters the mix: rolled, equalised, at its level over active frames.

    Raises:
        AudioError: the window is silent (reason ``silent``); silence has no level to set.
    """
    if layer.roll_samples:
        window = np.roll(window, layer.roll_samples)
    if layer.equaliser is not None:
        window = equaliser.apply(layer.equaliser, window, rate_hz)
    level = levels.active_rms(window)
    if level == 0.0:
        raise AudioError("silent", "a window of a mix is silent")
    return window * np.float32(levels.from_db(layer.gain_db) / level)


def mix(
    windows: Sequence[Float32[np.ndarray, " samples"]], seed: int, views: ViewsConfig, rate_hz: int
) -> Float32[np.ndarray, " samples"]:
    """Return the mix of ``windows`` (equal lengths) that ``seed`` draws.

    Args:
        windows: one to three waveforms at ``rate_hz``; the first is the reference of the others' levels.
        seed: of every draw, the noise included.
        views: ranges of level, gain and equaliser.
        rate_hz: sample rate.

    Returns:
        float32 (samples,), RMS as drawn unless the peak limit of 0.98 lowered it.

    Raises:
        AudioError: a window is silent.
    """
    generator = np.random.default_rng(seed)
    samples = len(windows[0])
    parameters = draw(generator, len(windows), samples, views)
    total = stem(windows[0], parameters.layers[0], rate_hz)
    for window, layer in zip(windows[1:], parameters.layers[1:], strict=True):
        total += stem(window, layer, rate_hz)
    if parameters.noise_slope is not None:
        hiss = noise.coloured(generator, samples, rate_hz, parameters.noise_slope)
        hiss *= np.float32(levels.rms(total) * levels.from_db(-parameters.noise_below_db))
        total += hiss
    if parameters.equaliser is not None:
        total = equaliser.apply(parameters.equaliser, total, rate_hz)
    return levels.set_level(total, parameters.level_dbfs)
