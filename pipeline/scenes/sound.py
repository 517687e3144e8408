"""The dry sound of a scene: a speaker's utterances with pauses, a background from recordings, procedural noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32

from pipeline.audio import clip_source, levels, noise, resampling, textures
from pipeline.errors import AudioError, ManifestError
from pipeline.scenes.material import Clip
from pipeline.scenes.measures import level_deviation_db, noise_class
from pipeline.scenes_config import ScenesConfig

LONGEST_UTTERANCE_SECONDS = 8.0
LEAD_SHARE = 0.1  # of a track before its first utterance, at most
GAP_SECONDS = (0.05, 0.4)
PAUSE_SECONDS = (1.0, 6.0)
BOUT_UTTERANCES = (2, 9)
CROSSFADE_SECONDS = 0.05
SPEECH_RMS = 0.1
SILENCE_DB = -60.0
FLOOR_PEAK = 1e-4
NOISE_TRIES = 50
UNUSABLE_CLIPS = 100


@dataclass
class Parts:
    """What a track was made of, and which clips could not be used.

    Attributes:
        used: role, clip, where it starts in the track and how much of it, a row each.
        rejects: role, clip, reason, problem.
    """

    used: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)

    def note(
        self, role: str, clip: Clip, start: int, offset_seconds: float, samples: int, rate_hz: int
    ) -> None:
        """Note that ``clip`` sounds from sample ``start``."""
        self.used.append({
            "role": role, "clip_id": clip.clip_id, "dataset": clip.dataset, "path": clip.path, "group": clip.group,
            "start_seconds": round(start / rate_hz, 4), "offset_seconds": round(offset_seconds, 4),
            "seconds": round(samples / rate_hz, 4), "licence": clip.licence, "credit": clip.credit,
        })  # fmt: skip

    def refuse(self, role: str, clip: Clip, error: AudioError) -> None:
        """Note that ``clip`` cannot be used; too many of them end the track.

        Raises:
            ManifestError: ``UNUSABLE_CLIPS`` clips of one track failed.
        """
        row = {"role": role, "dataset": clip.dataset, "path": clip.path}
        self.rejects.append(row | {"reason": error.reason, "problem": error.problem})
        if len(self.rejects) >= UNUSABLE_CLIPS:
            raise ManifestError(
                f"{UNUSABLE_CLIPS} clips in a row cannot be used", got=error.problem,
                run="ossicle manifest RECIPE, once the audio is where the manifest says",
            )  # fmt: skip


def speech(
    generator: np.random.Generator, clips: Sequence[Clip], role: str, samples: int, rate_hz: int, parts: Parts
) -> Float32[np.ndarray, " samples"]:
    """Return one speaker's utterances of equal level, in bouts with pauses between.

    Raises:
        ManifestError: none of the speaker's clips can be used.
    """
    track = np.zeros(samples, dtype=np.float32)
    order = _endless(generator, clips)
    position = round(generator.uniform(0, LEAD_SHARE) * samples)
    said, left = 0, int(generator.integers(*BOUT_UTTERANCES))
    failed = 0
    while position < samples:
        clip = next(order)
        try:
            utterance, offset = excerpt(generator, clip, LONGEST_UTTERANCE_SECONDS, rate_hz)
        except AudioError as error:
            parts.refuse(role, clip, error)
            failed += 1
            if not said and failed >= len(clips):
                raise ManifestError(f"no clip of {clip.group} can be used", got=error.problem) from error
            continue
        kept = utterance[: samples - position]
        parts.note(role, clip, position, offset, len(kept), rate_hz)
        track[position : position + len(kept)] = kept * np.float32(SPEECH_RMS / levels.active_rms(utterance))
        said, left = said + 1, left - 1
        position += len(utterance) + round(generator.uniform(*GAP_SECONDS) * rate_hz)
        if left == 0:
            position += round(generator.uniform(*PAUSE_SECONDS) * rate_hz)
            left = int(generator.integers(*BOUT_UTTERANCES))
    return track


def background(
    generator: np.random.Generator,
    recordings: Mapping[str, Sequence[Clip]],
    samples: int,
    rate_hz: int,
    parts: Parts,
) -> Float32[np.ndarray, " samples"]:
    """Return recordings of one environment in a random order, of equal level, joined by crossfades of 50 ms.

    Each recording is heard before any is heard again; one that lasts long enough is heard alone.

    Raises:
        ManifestError: none can be used.
    """
    rounds = _rounds(generator, recordings)
    track = np.zeros(samples, dtype=np.float32)
    fade = min(round(CROSSFADE_SECONDS * rate_hz), samples // 4)
    position, failed, turn = 0, 0, 0
    while position < samples:
        clip = rounds[turn % len(rounds)]
        turn += 1
        try:
            sound, offset = excerpt(generator, clip, samples / rate_hz, rate_hz)
            if len(sound) <= 2 * fade:
                raise AudioError(
                    "too_short", f"{clip.path} without its silences is too short for a background"
                )
        except AudioError as error:
            parts.refuse("background", clip, error)
            failed += 1
            if failed >= len(rounds) and position == 0:
                raise ManifestError(
                    f"no background of {clip.group} can be used", got=error.problem
                ) from error
            continue
        sound = sound * np.float32(SPEECH_RMS / levels.rms(sound))
        if position:
            ramp = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
            sound[:fade] *= ramp
            tail = track[position : position + fade]
            tail *= ramp[::-1][: len(tail)]
        kept = sound[: samples - position]
        parts.note("background", clip, position, offset, len(kept), rate_hz)
        track[position : position + len(kept)] += kept
        position += len(sound) - fade
        if position + fade >= samples:
            break
    return track


def procedural(
    generator: np.random.Generator, samples: int, rate_hz: int, config: ScenesConfig, parts: Parts
) -> Float32[np.ndarray, " samples"]:
    """Return noise that is measurably stationary, or measurably transient, by a fair coin.

    Raises:
        ManifestError: the thresholds leave no such noise.
    """
    steady = bool(generator.random() < 0.5)
    kinds = (textures.impulses_layer, textures.knocks_layer, textures.calls_layer, textures.chopped_layer)
    for _ in range(NOISE_TRIES):
        made = noise.coloured(generator, samples, rate_hz, float(generator.uniform(0.0, 1.2)))
        name = "coloured noise"
        if not steady:
            kind = kinds[int(generator.integers(len(kinds)))]
            made = made * np.float32(levels.from_db(-float(generator.uniform(20.0, 40.0))))
            events = kind(generator, samples, rate_hz)
            made = made + events * np.float32(1.0 / max(levels.rms(events), 1e-9))
            name = kind.__name__.removesuffix("_layer")
        deviation = level_deviation_db(made, rate_hz)
        if noise_class(deviation, config.stationary_below_db, config.transient_above_db) == (
            "Stationary" if steady else "Transient"
        ):
            parts.used.append({
                "role": "background", "clip_id": "", "dataset": "procedural", "path": name, "group": "procedural",
                "start_seconds": 0.0, "offset_seconds": 0.0, "seconds": round(samples / rate_hz, 4),
                "licence": "CC0-1.0", "credit": "made by ossicle scenes",
            })  # fmt: skip
            return (made * np.float32(SPEECH_RMS / levels.rms(made))).astype(np.float32)
    raise ManifestError(
        f"{NOISE_TRIES} procedural noises are neither stationary nor transient",
        got=f"stationary_below_db {config.stationary_below_db:g}, transient_above_db {config.transient_above_db:g}",
        run="--set scenes.noise_share=0, or thresholds nearer to 3 and 5 dB",
    )


def excerpt(
    generator: np.random.Generator, clip: Clip, longest_seconds: float, rate_hz: int
) -> tuple[Float32[np.ndarray, " samples"], float]:
    """Return a clip at ``rate_hz`` without the silence at its ends, cut at random where it is longer, and its start.

    Raises:
        AudioError: it cannot be read, is not what the manifest lists, or is silent.
    """
    wanted = int(longest_seconds * clip.sample_rate_hz)
    start = int(generator.integers(clip.frames - wanted + 1)) if clip.frames > wanted else 0
    sound, rate = clip_source.read(clip.file, start, min(wanted, clip.frames))
    if rate != clip.sample_rate_hz:
        raise AudioError("changed", f"{clip.path} has {rate} Hz, the manifest {clip.sample_rate_hz}")
    peak = max(float(sound.max()), -float(sound.min()))
    if peak < FLOOR_PEAK:
        raise AudioError("silent", f"{clip.path} is silent")
    loud = np.flatnonzero(np.abs(sound) >= peak * levels.from_db(SILENCE_DB))
    sound = sound[loud[0] : loud[-1] + 1]
    offset = (start + int(loud[0])) / rate
    return np.array(resampling.resample(sound, rate, rate_hz), dtype=np.float32), offset


def _endless(generator: np.random.Generator, clips: Sequence[Clip]) -> Any:
    while True:
        for index in generator.permutation(len(clips)):
            yield clips[int(index)]


def _rounds(generator: np.random.Generator, recordings: Mapping[str, Sequence[Clip]]) -> list[Clip]:
    """Return all clips in a random order in which no recording comes twice before the others came once."""
    shuffled = [[clips[int(i)] for i in generator.permutation(len(clips))] for clips in recordings.values()]
    shuffled = [shuffled[int(i)] for i in generator.permutation(len(shuffled))]
    return [clips[turn] for turn in range(max(map(len, shuffled))) for clips in shuffled if turn < len(clips)]
