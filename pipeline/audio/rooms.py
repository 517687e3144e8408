"""Seeded shoebox rooms and their impulse responses by the image source method (pyroomacoustics).

Image sources: Allen and Berkley, JASA 65(4), 1979. A room holds one microphone and two sources, one for the
window and one for its background. Reverberation time by Sabine: RT60 = 24 ln(10) V / (c S a).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math

import numpy as np
from jaxtyping import Float32

from pipeline.audio import shoebox
from pipeline.audio.shoebox import (
    SOUND_METRES_A_SECOND,
    WALL_METRES,
    Point,
    is_inside,
    library,
    metres,
    point_around,
    sabine_rt60,
    simulated,
)
from pipeline.errors import MissingDependencyError
from pipeline.section import Section
from pipeline.view_config import RoomConfig

MOST_ABSORPTION = 0.95
DRAWS = 1_000
SOURCES = 2
KEPT_ROOMS = 512


class Room(Section):
    """A shoebox room: sizes and positions in metres, to the millimetre.

    ``rt60_seconds`` is Sabine's for the absorption used; ``image_order`` ends the response earlier where the
    room is small and live.
    """

    size_metres: Point
    rt60_seconds: float
    microphone_metres: Point
    sources_metres: tuple[Point, Point]
    image_order: int


def draw(seed: int, split: str, number: int, config: RoomConfig) -> Room:
    """Return room ``number`` of a split; the splits share no room.

    The sources stand at drawn distances in random directions, 0.3 m from the walls at least; where a distance
    finds no place, the last one tried does.
    """
    content = hashlib.sha256(f"room/{seed}/{split}/{number}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(content[:8], "big"))
    sides = (config.length_metres, config.width_metres, config.height_metres)
    size = metres(generator.uniform(*side) for side in sides)
    rt60 = max(float(generator.uniform(*config.rt60_seconds)), sabine_rt60(size, MOST_ABSORPTION))
    microphone = metres(generator.uniform(WALL_METRES, side - WALL_METRES) for side in size)
    first, second = (_placed(generator, size, microphone, config) for _ in range(SOURCES))
    return Room(
        size_metres=size,
        rt60_seconds=round(rt60, 4),
        microphone_metres=microphone,
        sources_metres=(first, second),
        image_order=min(config.image_order, _needed_order(size, rt60)),
    )


@functools.lru_cache(maxsize=KEPT_ROOMS)
def responses(room: Room, rate_hz: int) -> tuple[Float32[np.ndarray, " taps"], ...]:
    """Return the impulse response of each source, its direct sound within 1 ms of the start.

    Float32, and the same bits on any number of cores.

    Raises:
        MissingDependencyError: pyroomacoustics is not installed.
    """
    acoustics = library(_missing)
    absorption = sabine_rt60(room.size_metres, 1.0) / room.rt60_seconds
    simulations = simulated(
        acoustics, room.size_metres, acoustics.Material(min(absorption, 1.0)), room.image_order, rate_hz,
        room.microphone_metres, room.sources_metres,
    )  # fmt: skip
    found = []
    for source, response in zip(room.sources_metres, simulations, strict=True):
        travelled = math.dist(source, room.microphone_metres) / SOUND_METRES_A_SECOND
        taps = np.asarray(response[int(travelled * rate_hz) :], dtype=np.float32)
        taps.setflags(write=False)
        found.append(taps)
    return tuple(found)


def version() -> str:
    """Return the version of the library whose responses these are; it is part of a row's key.

    Raises:
        MissingDependencyError: pyroomacoustics is not installed.
    """
    return shoebox.version(_missing)


def _missing() -> MissingDependencyError:
    return MissingDependencyError(
        "views in rooms need pyroomacoustics, which is not installed",
        run="pip install 'ossicle[rooms]', or set embed.views.room.probability=0",
    )


def _needed_order(size: Point, rt60: float) -> int:
    """Return the image order whose diamond of mirrored rooms holds all paths that last ``rt60``."""
    nearest = min(a * b / math.hypot(a, b) for a, b in itertools.combinations(size, 2))
    return max(0, math.ceil(SOUND_METRES_A_SECOND * rt60 / nearest - 1))


def _placed(generator: np.random.Generator, size: Point, microphone: Point, config: RoomConfig) -> Point:
    wanted = float(generator.uniform(*config.distance_metres))
    place = microphone
    for _ in range(DRAWS):
        place = point_around(generator, microphone, wanted)
        if is_inside(place, size):
            return place
        wanted = max(config.distance_metres[0], wanted * 0.995)
    return metres(min(max(p, WALL_METRES), side - WALL_METRES) for p, side in zip(place, size, strict=True))
