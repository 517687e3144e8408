"""Seeded shoebox rooms and their impulse responses by the image source method (pyroomacoustics).

Image sources: Allen and Berkley, JASA 65(4), 1979. A room holds one microphone and two sources, one for the
window and one for its background. Reverberation time by Sabine: RT60 = 24 ln(10) V / (c S a).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import itertools
import math
import threading
from typing import Any

import numpy as np
from jaxtyping import Float32

from pipeline.errors import MissingDependencyError
from pipeline.section import Section
from pipeline.view_config import RoomConfig

SOUND_METRES_A_SECOND = 343.0
MOST_ABSORPTION = 0.95
WALL_METRES = 0.3
DRAWS = 1_000
SOURCES = 2
KEPT_ROOMS = 512

Point = tuple[float, float, float]
_simulating = threading.Lock()


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
    size = _metres(generator.uniform(*side) for side in sides)
    rt60 = max(float(generator.uniform(*config.rt60_seconds)), sabine_rt60(size, MOST_ABSORPTION))
    microphone = _metres(generator.uniform(WALL_METRES, side - WALL_METRES) for side in size)
    first, second = (_placed(generator, size, microphone, config) for _ in range(SOURCES))
    return Room(
        size_metres=size,
        rt60_seconds=round(rt60, 4),
        microphone_metres=microphone,
        sources_metres=(first, second),
        image_order=min(config.image_order, _needed_order(size, rt60)),
    )


def sabine_rt60(size_metres: Point, absorption: float) -> float:
    """Return the RT60 in seconds of a shoebox whose walls absorb that share of the power."""
    volume = math.prod(size_metres)
    surface = 2 * sum(a * b for a, b in itertools.combinations(size_metres, 2))
    return 24 * math.log(10.0) * volume / (SOUND_METRES_A_SECOND * surface * absorption)


@functools.lru_cache(maxsize=KEPT_ROOMS)
def responses(room: Room, rate_hz: int) -> tuple[Float32[np.ndarray, " taps"], ...]:
    """Return the impulse response of each source, its direct sound within 1 ms of the start.

    One thread and float32: the sum over image sources depends, in its last bits, on how many threads share it.

    Raises:
        MissingDependencyError: pyroomacoustics is not installed.
    """
    library = _library()
    absorption = sabine_rt60(room.size_metres, 1.0) / room.rt60_seconds
    with _simulating:
        threads = library.constants.get("num_threads")
        library.constants.set("num_threads", 1)
        try:
            shoebox = library.ShoeBox(
                np.array(room.size_metres), fs=rate_hz, materials=library.Material(min(absorption, 1.0)),
                max_order=room.image_order, air_absorption=False,
            )  # fmt: skip
            for source in room.sources_metres:
                shoebox.add_source(np.array(source))
            shoebox.add_microphone(np.array(room.microphone_metres))
            shoebox.compute_rir()
        finally:
            library.constants.set("num_threads", threads)
    found = []
    for source, response in zip(room.sources_metres, shoebox.rir[0], strict=True):
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
    try:
        return importlib.metadata.version("pyroomacoustics")
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing() from error


def _library() -> Any:
    try:
        import pyroomacoustics
    except ImportError as error:
        raise _missing() from error
    return pyroomacoustics


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
        direction = generator.standard_normal(3)
        offset = direction * (wanted / float(np.linalg.norm(direction)))
        place = _metres(m + o for m, o in zip(microphone, offset, strict=True))
        if all(WALL_METRES <= p <= side - WALL_METRES for p, side in zip(place, size, strict=True)):
            return place
        wanted = max(config.distance_metres[0], wanted * 0.995)
    return _metres(min(max(p, WALL_METRES), side - WALL_METRES) for p, side in zip(place, size, strict=True))


def _metres(values: Any) -> Point:
    x, y, z = (round(float(value), 3) for value in values)
    return x, y, z
