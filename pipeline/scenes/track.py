"""One scene: rendered from its slot and the seed, and its labels measured from the stems and responses."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.signal
from jaxtyping import Float, Float32

from pipeline.audio import levels
from pipeline.errors import ManifestError
from pipeline.scenes import acoustics, measures, sound
from pipeline.scenes.acoustics import Response
from pipeline.scenes.material import Material
from pipeline.scenes.schedule import Slot
from pipeline.scenes_config import ScenesConfig

PEAK_LIMIT = 0.98
SPEAKER_SPREAD_DB = 3.0


@dataclass(frozen=True)
class Track:
    """A scene and everything known about it.

    Attributes:
        mix: float32 (samples,), target plus background.
        target: float32 (samples,), all speakers, reverberation included.
        background: float32 (samples,), microphone noise included.
        responses: of each speaker, then of the background.
        labels: DEAR's columns but ``id`` and ``split``; None is an empty cell.
        facts: what was drawn and measured beside the labels.
        parts: clips used and refused.
    """

    mix: Float32[np.ndarray, " samples"]
    target: Float32[np.ndarray, " samples"]
    background: Float32[np.ndarray, " samples"]
    responses: list[Response]
    labels: dict[str, Any]
    facts: dict[str, Any]
    parts: sound.Parts


def render(slot: Slot, config: ScenesConfig, material: Material) -> Track:
    """Return the track of ``slot``: the same bits for the same seed, material and libraries.

    Raises:
        ManifestError: its clips cannot be used.
        MissingDependencyError: pyroomacoustics is not installed.
    """
    generator = np.random.default_rng([config.seed, 2, slot.number])
    rate, samples = config.sample_rate_hz, config.seconds * config.sample_rate_hz
    where = acoustics.place(config.seed, slot.split, slot.place, slot.indoor, config.rooms)
    microphone, sources = acoustics.positions(generator, where, slot.speakers + 1, config.rooms)
    responses = acoustics.responses(generator, where, microphone, sources, config.rooms.image_order, rate)
    parts = sound.Parts()
    names = _drawn(generator, list(material.speakers[slot.split]), slot.speakers)
    dry = [
        sound.speech(
            generator, material.speakers[slot.split][name], f"speaker {number}", samples, rate, parts
        )
        for number, name in enumerate(names, 1)
    ]
    target = np.zeros(samples)
    for spoken, response in zip(dry, responses, strict=False):
        gain = levels.from_db(float(generator.uniform(-SPEAKER_SPREAD_DB, SPEAKER_SPREAD_DB)))
        # Speakers are equally loud at the microphone, whatever their distance: a near one would cover the others.
        gain /= math.sqrt(float(np.square(response.taps.astype(np.float64)).sum()))
        target += gain * _through(spoken, response)
    noise = _background(generator, slot, config, material, responses[-1], parts)
    frames = np.array([measures.active_frames(spoken, rate) for spoken in dry], dtype=bool)
    active = measures.active_speakers(frames) if dry else np.full(config.seconds, np.nan)
    wanted_snr = float(generator.uniform(*config.snr_db))
    if dry:
        noise *= _gain(target, noise, active, wanted_snr, rate)
    level = float(generator.uniform(*config.level_dbfs))
    target, noise = _levelled(target, noise, level)
    noise += generator.standard_normal(samples) * levels.from_db(config.microphone_noise_dbfs)
    target32, noise32 = target.astype(np.float32), noise.astype(np.float32)
    labels, facts = _labels(slot, config, target32, noise32, active, responses)
    facts |= {
        "room": asdict(where), "microphone_metres": microphone, "sources_metres": sources, "speakers": names,
        "snr_wanted_db": round(wanted_snr, 3) if dry else None, "level_wanted_dbfs": round(level, 3),
    }  # fmt: skip
    return Track(target32 + noise32, target32, noise32, responses, labels, facts, parts)


def _labels(
    slot: Slot,
    config: ScenesConfig,
    target: np.ndarray,
    noise: np.ndarray,
    active: np.ndarray,
    responses: list[Response],
) -> tuple[dict[str, Any], dict[str, Any]]:
    rate = config.sample_rate_hz
    deviation = measures.level_deviation_db(noise, rate)
    rt60 = [
        measures.rt60_seconds(r.taps, rate, r.direct_sample) if slot.indoor else math.nan for r in responses
    ]
    drr = [measures.drr_db(r.taps, rate, r.direct_sample) if slot.indoor else math.nan for r in responses]
    labels: dict[str, Any] = {
        "environmentClass": slot.environment or None,
        "indoorOrOutdoor": None if slot.noise else ("Indoor" if slot.indoor else "Outdoor"),
        "stationaryOrTransientNoise": measures.noise_class(
            deviation, config.stationary_below_db, config.transient_above_db
        )
        or None,
        "nTargets": slot.speakers or None,
        "targetRT60": _number(rt60[0]) if slot.speakers == 1 else None,
        "targetDRR": _number(drr[0]) if slot.speakers == 1 else None,
    }
    snr = measures.snr_db(target, noise, rate) if slot.speakers else np.full(config.seconds, np.nan)
    for second in range(config.seconds):
        # A second of pure reverberation has a ratio, and nobody whose ratio it would be.
        labels[f"targetSNR_{second + 1}"] = _number(float(snr[second])) if active[second] >= 1 else None
    for second in range(config.seconds):
        count = float(active[second])
        labels[f"nTargetsActive_{second + 1}"] = None if math.isnan(count) else int(count)
    facts = {
        "level_deviation_db": _number(deviation),
        "rt60_seconds": [_number(value) for value in rt60],
        "drr_db": [_number(value) for value in drr],
    }
    return labels, facts


def _background(
    generator: np.random.Generator,
    slot: Slot,
    config: ScenesConfig,
    material: Material,
    response: Response,
    parts: sound.Parts,
) -> Float[np.ndarray, " samples"]:
    """Return the background as it sounds in the place, its reverberation there from the first sample."""
    rate, samples = config.sample_rate_hz, config.seconds * config.sample_rate_hz
    before = len(response.taps) - 1
    if slot.noise:
        dry = sound.procedural(generator, samples + before, rate, config, parts)
    else:
        recordings = material.backgrounds[slot.split][slot.environment]
        dry = sound.background(generator, recordings, samples + before, rate, parts)
    found: np.ndarray = scipy.signal.fftconvolve(
        dry.astype(np.float64), response.taps.astype(np.float64), mode="valid"
    )
    return found


def _through(dry: np.ndarray, response: Response) -> np.ndarray:
    wet: np.ndarray = scipy.signal.fftconvolve(dry.astype(np.float64), response.taps.astype(np.float64))
    return wet[: len(dry)]


def _gain(target: np.ndarray, noise: np.ndarray, active: np.ndarray, snr_db: float, rate_hz: int) -> float:
    """Return what the background is scaled by for ``snr_db`` over the seconds with speech."""
    kept = np.repeat(~(active == 0), rate_hz)
    of_target = float(np.square(target[kept]).sum())
    of_noise = float(np.square(noise[kept]).sum()) or float(np.square(noise).sum())
    if of_target == 0 or of_noise == 0:
        raise ManifestError("a scene has no sound in its speech or in its background")
    return math.sqrt(of_target / of_noise) * levels.from_db(-snr_db)


def _levelled(target: np.ndarray, noise: np.ndarray, level_dbfs: float) -> tuple[np.ndarray, np.ndarray]:
    mix = target + noise
    gain = levels.from_db(level_dbfs) / math.sqrt(float(np.square(mix).mean()))
    gain = min(gain, PEAK_LIMIT / float(np.abs(mix).max()))
    return target * gain, noise * gain


def _drawn(generator: np.random.Generator, names: list[str], count: int) -> list[str]:
    return [names[int(i)] for i in generator.choice(len(names), count, replace=False)]


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
