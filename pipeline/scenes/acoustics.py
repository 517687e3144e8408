"""Rooms and open places, and the impulse responses of the sources in them.

Indoors: image sources (Allen and Berkley, JASA 65(4), 1979; pyroomacoustics) as far as the order followed is
complete, then the diffuse tail they lead to, as decaying noise (Lehmann and Johansson, IEEE TASLP 18(6), 2010).
Walls absorb by Eyring's formula for the RT60 drawn. Outdoors: the direct sound and one reflection of the ground.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from pipeline.audio import shoebox
from pipeline.audio.shoebox import (
    SOUND_METRES_A_SECOND,
    WALL_METRES,
    Point,
    is_inside,
    metres,
    point_around,
    simulated,
)
from pipeline.errors import MissingDependencyError
from pipeline.scenes_config import SceneRoomsConfig

PLACES_TRIED = 1_000
FIELD_METRES = (200.0, 200.0, 100.0)  # of an open place; its walls and sky return nothing
EAR_METRES = (1.2, 1.8)
TAIL_RT60S = 1.15
FADE_SECONDS = 0.01


@dataclass(frozen=True)
class Place:
    """A room, or an open place.

    Attributes:
        name: unique among both splits.
        indoor: whether it has walls.
        size_metres: of the room; of the field around an open place.
        rt60_seconds: aimed at; 0 outdoors.
        absorption: energy share that every wall takes; outdoors the ground alone.
    """

    name: str
    indoor: bool
    size_metres: Point
    rt60_seconds: float
    absorption: float


@dataclass(frozen=True)
class Response:
    """The impulse response of one source, its travel time cut off.

    Attributes:
        taps: float32.
        direct_sample: where the direct sound peaks.
    """

    taps: Float32[np.ndarray, " taps"]
    direct_sample: int


def place(seed: int, split: str, number: int, indoor: bool, config: SceneRoomsConfig) -> Place:
    """Return place ``number`` of a split; the splits share none."""
    kind = "indoor" if indoor else "outdoor"
    content = hashlib.sha256(f"scenes/{seed}/{split}/{kind}/{number}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(content[:8], "big"))
    name = f"{split}-{kind}-{number}"
    if not indoor:
        return Place(name, False, FIELD_METRES, 0.0, round(float(generator.uniform(0.1, 0.8)), 3))
    size = metres(
        generator.uniform(*side) for side in (config.length_metres, config.width_metres, config.height_metres)
    )
    rt60 = round(float(generator.uniform(*config.rt60_seconds)), 3)
    return Place(name, True, size, rt60, round(eyring_absorption(size, rt60), 5))


def eyring_absorption(size_metres: Point, rt60_seconds: float) -> float:
    """Return what share of the energy the walls of a shoebox absorb (Eyring, JASA 1, 1930)."""
    # Sabine's formula gives RT60 of an absorption and the absorption of an RT60; Eyring's exponent is the latter.
    return 1.0 - math.exp(-shoebox.sabine_rt60(size_metres, rt60_seconds))


def positions(
    generator: np.random.Generator, where: Place, sources: int, config: SceneRoomsConfig
) -> tuple[Point, list[Point]]:
    """Return the microphone and the sources, at drawn distances in random directions.

    Indoors 0.3 m from the walls at least; a distance that finds no place is shortened until one does. Outdoors
    everything is 1.2 to 1.8 m above the ground.
    """
    x, y, z = where.size_metres
    if not where.indoor:
        microphone = metres((x / 2, y / 2, generator.uniform(*EAR_METRES)))
        return microphone, [_around(generator, microphone, config) for _ in range(sources)]
    microphone = metres(generator.uniform(WALL_METRES, side - WALL_METRES) for side in (x, y, z))
    return microphone, [_inside(generator, where, microphone, config) for _ in range(sources)]


def responses(
    generator: np.random.Generator,
    where: Place,
    microphone: Point,
    sources: list[Point],
    order: int,
    rate_hz: int,
) -> list[Response]:
    """Return the impulse response of each source, float32, the same bits on any number of cores.

    Args:
        generator: of the diffuse tails.
        where: the place.
        microphone: metres.
        sources: metres.
        order: of the reflections followed one by one, indoors.
        rate_hz: sample rate.

    Raises:
        MissingDependencyError: pyroomacoustics is not installed.
    """
    library = shoebox.library(_missing)
    if where.indoor:
        materials: Any = library.Material(where.absorption)
    else:
        absorbing = dict.fromkeys(("ceiling", "east", "west", "north", "south"), 1.0)
        materials = library.make_materials(**absorbing, floor=where.absorption)
        order = 1
    simulations = simulated(library, where.size_metres, materials, order, rate_hz, microphone, sources)
    lead = int(library.constants.get("frac_delay_length")) // 2
    found = []
    for source, simulation in zip(sources, simulations, strict=True):
        travelled = math.dist(source, microphone) / SOUND_METRES_A_SECOND
        cut = int(travelled * rate_hz)
        direct = lead + round(travelled * rate_hz - cut)
        taps = np.asarray(simulation, dtype=np.float64)[cut:]
        if where.indoor:
            complete = round(_complete_seconds(where.size_metres, order) * rate_hz) + lead - cut
            taps = _with_tail(generator, taps, direct, complete, where.rt60_seconds, rate_hz)
        found.append(Response(taps.astype(np.float32), direct))
    return found


def version() -> str:
    """Return the version of the library whose responses these are.

    Raises:
        MissingDependencyError: pyroomacoustics is not installed.
    """
    return shoebox.version(_missing)


def _with_tail(
    generator: np.random.Generator,
    taps: np.ndarray,
    direct: int,
    complete: int,
    rt60_seconds: float,
    rate_hz: int,
) -> np.ndarray:
    """Return ``taps`` up to ``complete``, and from there noise whose power goes on as theirs decays."""
    fade = round(FADE_SECONDS * rate_hz)
    complete = max(complete, direct + 3 * fade)
    length = max(complete, round(TAIL_RT60S * rt60_seconds * rate_hz)) + fade
    early = np.zeros(length)
    kept = taps[:complete]
    early[: len(kept)] = kept
    power = 10.0 ** (-6.0 * np.arange(length) / (rt60_seconds * rate_hz))
    start = max(complete // 2, direct + fade)
    scale = np.square(early[start:complete]).sum() / power[start:complete].sum()
    tail = generator.standard_normal(length) * np.sqrt(power * scale)
    ramp = np.clip((np.arange(length) - (complete - fade)) / fade, 0.0, 1.0) * (np.pi / 2)
    joined: np.ndarray = early * np.cos(ramp) + tail * np.sin(ramp)
    return joined


def _complete_seconds(size_metres: Point, order: int) -> float:
    """Return until when after emission no reflection of a higher order than ``order`` arrives."""
    # An image k reflections away along an axis is k - 1 lengths off at least, on each of three axes.
    return (order - 2) / math.sqrt(sum(side**-2 for side in size_metres)) / SOUND_METRES_A_SECOND


def _around(generator: np.random.Generator, microphone: Point, config: SceneRoomsConfig) -> Point:
    angle, distance = generator.uniform(0, 2 * math.pi), generator.uniform(*config.distance_metres)
    x, y, _ = microphone
    return metres(
        (x + distance * math.cos(angle), y + distance * math.sin(angle), generator.uniform(*EAR_METRES))
    )


def _inside(
    generator: np.random.Generator, where: Place, microphone: Point, config: SceneRoomsConfig
) -> Point:
    wanted = float(generator.uniform(*config.distance_metres))
    for _ in range(PLACES_TRIED):
        found = point_around(generator, microphone, wanted)
        if is_inside(found, where.size_metres):
            return found
        wanted = max(min(config.distance_metres[0], 0.5), wanted * 0.99)
    # From any point of a room the opposite half has 0.5 m to spare: rooms have 1.5 m at least.
    x = where.size_metres[0]
    toward = -1.0 if microphone[0] > x / 2 else 1.0
    return metres(
        (min(max(microphone[0] + toward * 0.5, WALL_METRES), x - WALL_METRES), microphone[1], microphone[2])
    )


def _missing() -> MissingDependencyError:
    return MissingDependencyError(
        "ossicle scenes needs pyroomacoustics, which is not installed", run="pip install 'ossicle[rooms]'"
    )
