"""Image sources in a shoebox (Allen and Berkley, JASA 65(4), 1979; pyroomacoustics), and points in it.

Views in rooms and generated scenes share it; each says by ``missing`` who needs pyroomacoustics.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pipeline.errors import MissingDependencyError

SOUND_METRES_A_SECOND = 343.0
WALL_METRES = 0.3

Point = tuple[float, float, float]
Missing = Callable[[], MissingDependencyError]
_simulating = threading.Lock()


def library(missing: Missing) -> Any:
    """Return pyroomacoustics.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import pyroomacoustics
    except ImportError as error:
        raise missing() from error
    return pyroomacoustics


def version(missing: Missing) -> str:
    """Return the version of pyroomacoustics.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.metadata.version("pyroomacoustics")
    except importlib.metadata.PackageNotFoundError as error:
        raise missing() from error


def sabine_rt60(size_metres: Point, absorption: float) -> float:
    """Return the RT60 in seconds of a shoebox whose walls absorb that share of the power."""
    volume = math.prod(size_metres)
    surface = 2 * sum(a * b for a, b in itertools.combinations(size_metres, 2))
    return 24 * math.log(10.0) * volume / (SOUND_METRES_A_SECOND * surface * absorption)


def simulated(
    acoustics: Any,
    size_metres: Point,
    materials: Any,
    order: int,
    rate_hz: int,
    microphone: Point,
    sources: Sequence[Point],
) -> list[np.ndarray]:
    """Return the impulse response (taps,) of each source, the same bits on any number of cores.

    Args:
        acoustics: pyroomacoustics.
        size_metres: of the shoebox.
        materials: of its walls, as pyroomacoustics has them.
        order: of the reflections.
        rate_hz: sample rate.
        microphone, sources: in metres.
    """
    # The sum over image sources depends, in its last bits, on how many threads share it.
    with _simulating:
        threads = acoustics.constants.get("num_threads")
        acoustics.constants.set("num_threads", 1)
        try:
            box = acoustics.ShoeBox(
                np.array(size_metres), fs=rate_hz, materials=materials, max_order=order, air_absorption=False
            )
            for source in sources:
                box.add_source(np.array(source))
            box.add_microphone(np.array(microphone))
            box.compute_rir()
        finally:
            acoustics.constants.set("num_threads", threads)
    return list(box.rir[0])


def metres(values: Iterable[Any]) -> Point:
    """Return a point to the millimetre."""
    x, y, z = (round(float(value), 3) for value in values)
    return x, y, z


def point_around(generator: np.random.Generator, centre: Point, distance_metres: float) -> Point:
    """Return a point at that distance in a random direction."""
    direction = generator.standard_normal(3)
    offset = direction * (distance_metres / float(np.linalg.norm(direction)))
    return metres(c + o for c, o in zip(centre, offset, strict=True))


def is_inside(point: Point, size_metres: Point) -> bool:
    """Whether a point is ``WALL_METRES`` from every wall at least."""
    return all(WALL_METRES <= p <= side - WALL_METRES for p, side in zip(point, size_metres, strict=True))
