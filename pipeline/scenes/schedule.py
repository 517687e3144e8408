"""Which track is what: its split, place, environment and number of speakers, in the shares that the recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.material import DEVELOPMENT, SPLITS, TEST, Material
from pipeline.scenes_config import ScenesConfig


@dataclass(frozen=True)
class Slot:
    """One track to be made.

    Attributes:
        number: from 0; with the seed it determines the whole track.
        split: ``development`` or ``test``.
        noise: a track of procedural noise, without speech or environment.
        indoor: in a room.
        place: number of the room, or of the open place.
        environment: class of its background; "" in a noise track.
        speakers: 1 to 3; 0 in a noise track.
    """

    number: int
    split: str
    noise: bool
    indoor: bool
    place: int
    environment: str
    speakers: int

    @property
    def name(self) -> str:
        """Its id in the table."""
        return f"{self.number:05d}"


def schedule(config: ScenesConfig, material: Material) -> list[Slot]:
    """Return every track, in order of its number.

    Shares hold in each split to the nearest track; a split has as many speakers at once as it has speakers.
    """
    generator = np.random.default_rng([config.seed, 1])
    tests = round(config.tracks * config.test_share)
    order = generator.permutation(config.tracks)
    slots: dict[int, Slot] = {}
    for split in SPLITS:
        numbers = sorted(int(n) for n in (order[:tests] if split == TEST else order[tests:]))
        count = len(numbers)
        noise = _shared(generator, [config.noise_share, 1 - config.noise_share], count) == 0
        outdoor = _shared(generator, [config.outdoor_share, 1 - config.outdoor_share], count) == 0
        most = len(material.speakers[split])
        speakers = np.minimum(_shared(generator, config.speakers, count) + 1, most)
        names = list(material.backgrounds[split])
        environment = _shared(generator, [1.0] * len(names), count)
        rooms = _rooms(config, split)
        for i, number in enumerate(numbers):
            drawn = int(generator.integers(rooms))
            slots[number] = Slot(
                number, split, bool(noise[i]), not outdoor[i], drawn, "" if noise[i] else names[environment[i]],
                0 if noise[i] else int(speakers[i]),
            )  # fmt: skip
    return [slots[number] for number in sorted(slots)]


def _rooms(config: ScenesConfig, split: str) -> int:
    count = config.rooms.count
    tests = min(max(round(count * config.test_share), 1), count - 1)
    return count - tests if split == DEVELOPMENT else tests


def _shared(generator: np.random.Generator, shares: Sequence[float], count: int) -> np.ndarray:
    """Return ``count`` indices into ``shares``, in their proportion by largest remainder, shuffled."""
    wanted = np.asarray(shares, dtype=np.float64) / sum(shares) * count
    counts = np.floor(wanted).astype(int)
    rest = np.argsort(counts - wanted, kind="stable")[: count - int(counts.sum())]
    counts[rest] += 1
    found: np.ndarray = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    return found
