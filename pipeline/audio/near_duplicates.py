"""Clips that sound alike though no sample is equal: re-encoded, resampled, at another level.

A fingerprint in the manner of Haitsma and Kalker (ISMIR 2002): one bit for each pair of neighbouring bands and
each pair of neighbouring frames, the sign of how their difference changed. Clips are compared from their starts,
so a copy cut elsewhere is not found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
from jaxtyping import Float32

FRAME_SECONDS = 0.25
HOP_SECONDS = 0.125
FRAMES = 64  # the first 8 s are enough to know a clip by
BANDS_HZ = np.geomspace(200.0, 3_000.0, 18)
FLOOR_DBFS = -60.0  # frames below say nothing
MIN_FRAMES = 5
MAX_BIT_ERRORS = 0.25  # unrelated clips disagree in half of their bits
MAX_DURATION_SHARE = 0.02
BUCKET = 16  # clips compared at most for one pair of equal frames


@dataclass(frozen=True)
class Fingerprint:
    """Bits of a clip's frames.

    Attributes:
        bits: uint16, one a frame.
        sounding: whether the frame and the one before are above the floor.
        seconds: length of the clip.
    """

    bits: np.ndarray
    sounding: np.ndarray
    seconds: float


class Fingerprinter:
    """Keeps a clip's first seconds: an ``Observer`` of ``decode.inspect``."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._kept = self._samples = self._rate_hz = 0

    def add(self, block: Float32[np.ndarray, " samples"], peak: float, rate_hz: int) -> None:
        """Take one block of mono samples."""
        del peak
        self._rate_hz = rate_hz
        self._samples += len(block)
        wanted = round((FRAMES * HOP_SECONDS + FRAME_SECONDS) * rate_hz) - self._kept
        if wanted > 0:
            self._blocks.append(block[:wanted])
            self._kept += len(self._blocks[-1])

    def made(self) -> Fingerprint | None:
        """Return the fingerprint, or None for a clip too short to have one."""
        frame, hop = round(FRAME_SECONDS * self._rate_hz), round(HOP_SECONDS * self._rate_hz)
        if self._kept < frame + hop * MIN_FRAMES:
            return None
        frames = np.lib.stride_tricks.sliding_window_view(np.concatenate(self._blocks), frame)[::hop][
            : FRAMES + 1
        ]
        window = np.hanning(frame).astype(np.float32)
        spectra = scipy.fft.rfft(frames * window, axis=1)
        edges = np.minimum((BANDS_HZ / self._rate_hz * frame).astype(int), spectra.shape[1] - 1)
        power = spectra.real**2 + spectra.imag**2
        bands = np.add.reduceat(power, edges, axis=1)[:, :-1]
        steps = np.diff(np.diff(bands, axis=1), axis=0) > 0
        loud = np.mean(frames**2, axis=1) > 10 ** (FLOOR_DBFS / 10)
        bits = np.packbits(steps, axis=1).view(">u2")[:, 0].astype(np.uint16)
        return Fingerprint(bits, loud[1:] & loud[:-1], self._samples / self._rate_hz)


def near_duplicates(fingerprints: Sequence[Fingerprint | None]) -> dict[int, int]:
    """Return the number of each clip that sounds like an earlier one, with the number of the first such.

    Only clips that share two equal neighbouring frames in the same place are compared, so the work grows with
    the number of clips and not with its square.
    """
    found: dict[int, int] = {}
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, mine in enumerate(fingerprints):
        if mine is None:
            continue
        keys = _keys(mine)
        rivals = sorted({other for key in keys for other in buckets.get(key, ())})
        twin = next((other for other in rivals if _alike(mine, fingerprints[other])), None)
        if twin is not None:
            found[number] = twin
            continue
        for key in keys:
            if len(buckets[key]) < BUCKET:
                buckets[key].append(number)
    return found


def _keys(mine: Fingerprint) -> list[tuple[int, int]]:
    # 24 bits: few enough that a tenth of wrong ones leaves some keys whole, enough for millions of clips.
    pairs = (mine.bits[:-1].astype(np.uint32) << 8) | (mine.bits[1:] >> 8)
    places = np.flatnonzero(mine.sounding[:-1] & mine.sounding[1:])
    return [(int(place), int(pairs[place])) for place in places]


def _alike(mine: Fingerprint, other: Fingerprint | None) -> bool:
    if other is None or abs(mine.seconds - other.seconds) > max(
        MAX_DURATION_SHARE * mine.seconds, 2 * HOP_SECONDS
    ):
        return False
    frames = min(len(mine.bits), len(other.bits))
    both = mine.sounding[:frames] & other.sounding[:frames]
    if np.count_nonzero(both) < MIN_FRAMES:
        return False
    different = (mine.bits[:frames] ^ other.bits[:frames])[both]
    errors = np.unpackbits(different.view(np.uint8)).mean()
    return bool(errors <= MAX_BIT_ERRORS)
