"""What is wrong with a clip's sound, measured on the samples that ingest decodes anyway.

Peak and clipping are of every sample; offset, level and silence of at most 64 frames a block of decoded samples,
bandwidth of a dozen, all spread evenly. The bandwidth is where the mean spectrum falls off a cliff: a resampler or a
lossy codec leaves nothing above it, while sound that merely has little treble fades. A cliff at half of a usual
lower rate is an upsampled clip; one where lossy codecs cut is a lossy low-pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from jaxtyping import Float32, Float64

FRAME = 2048
FRAMES_A_BLOCK = (
    64  # looked at of each block of up to 512, evenly spread: measuring must cost little beside decoding
)
SPECTRA_A_BLOCK = 12
SILENCE_DBFS = -60.0
CLIP_LEVEL = 0.999
CLIPPED_SHARE = 1e-4  # two neighbours at full scale, this often
OFFSET = 0.01  # of full scale
SILENT_SHARE = 0.5
CLIFF_DB = 18.0
SLOPE_DB = 30.0
MIRROR_BANDS = 4
HEARD_DB = 90.0  # below the loudest band, what a window's side lobes leave is no sound
CLIFF_BANDS = 96  # bands up to half the sample rate; a cliff falls within two of them
EMPTY_DB = 6.0  # how much bands above a steep cliff may differ
FULL_SHARE = 0.9  # a cliff above this share of half the rate is the anti-alias filter of a normal recording
USUAL_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
OLD_NYQUIST = (0.84, 1.18)  # where resamplers put the cliff, as a share of half the old rate
FAMILY_MARGIN = 0.1  # between 22,050 and 24,000 Hz, the one that divides the present rate is likelier
LOSSY_HZ = (14_800.0, 20_600.0)  # where MP3 and AAC encoders of 96 to 320 kbit/s cut
LOSSY_FORMATS = ("MP3", "OGG", "MPEG")
LOSSY_FORMAT_HZ = 9_500.0  # an encoder of a low rate cuts no lower
NARROW_HZ = 3_000.0

FORMATS = {
    ".wav": ("WAV", "WAVEX", "RF64", "W64"), ".flac": ("FLAC",), ".ogg": ("OGG",), ".oga": ("OGG",),
    ".mp3": ("MP3", "MPEG"), ".aif": ("AIFF",), ".aiff": ("AIFF",), ".au": ("AU",),
}  # fmt: skip
ISSUES = (
    "clipping", "dc_offset", "silence", "upsampled", "lossy_lowpass", "narrow_band", "wrong_encoding", "near_duplicate",
)  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """One clip's measures.

    Attributes:
        peak: largest magnitude, 1 = full scale.
        rms_dbfs: of the frames looked at; -inf for digital silence.
        clipped_share: share of samples that stand at full scale beside another that does.
        dc_offset: mean of the frames looked at, 1 = full scale.
        silence_share: share of frames of 2,048 samples below -60 dBFS.
        bandwidth_hz: where the spectrum ends; half the sample rate where there is no cliff.
        bandwidth: full, upsampled, lossy_lowpass or narrow_band.
        was_rate_hz: the rate that an upsampled clip came from, else 0.
    """

    peak: float
    rms_dbfs: float
    clipped_share: float
    dc_offset: float
    silence_share: float
    bandwidth_hz: float
    bandwidth: str
    was_rate_hz: int


class QualityMeter:
    """Gathers a clip's measures block by block: an ``Observer`` of ``decode.inspect``."""

    def __init__(self) -> None:
        self.rate_hz, self.samples, self.peak = 0, 0, 0.0
        self._sum = self._energy = 0.0
        self._clipped = self._frames = self._silent = 0
        self._power = np.zeros(FRAME // 2 + 1)

    def add(self, block: Float32[np.ndarray, " samples"], peak: float, rate_hz: int) -> None:
        """Take one block of mono samples."""
        self.rate_hz = rate_hz
        self.samples += len(block)
        self.peak = max(self.peak, peak)
        if peak >= CLIP_LEVEL:
            full = np.abs(block) >= CLIP_LEVEL
            self._clipped += int(np.count_nonzero(full[1:] & full[:-1]))
        whole = len(block) // FRAME * FRAME
        if not whole:
            block = np.concatenate((block, np.zeros(FRAME - len(block), np.float32)))
            whole = FRAME
        frames = block[:whole].reshape(-1, FRAME)
        frames = frames[:: -(-len(frames) // FRAMES_A_BLOCK)]
        # A product with ones sums three times faster than sum does.
        self._sum += float((frames @ _ONES).sum(dtype=np.float64))
        energies = np.einsum("ij,ij->i", frames, frames)
        self._energy += float(energies.sum(dtype=np.float64))
        self._frames += len(frames)
        sounding = np.flatnonzero(energies > FRAME * 10 ** (SILENCE_DBFS / 10))
        self._silent += len(frames) - len(sounding)
        if len(sounding):
            chosen = sounding[:: -(-len(sounding) // SPECTRA_A_BLOCK)]
            spectra = scipy.fft.rfft(frames[chosen] * _WINDOW, axis=1).view(np.float32)
            self._power += np.einsum("ij,ij->j", spectra, spectra).reshape(-1, 2).sum(axis=1)

    def measured(self, container: str) -> Quality:
        """Return the measures of all blocks; ``container`` is libsndfile's format (WAV, MP3, ...)."""
        looked_at = max(self._frames * FRAME, 1)
        energy = self._energy / looked_at
        edge = cliff_hz(self._power, self.rate_hz)
        bandwidth, was = _named(edge, self.rate_hz, container)
        return Quality(
            peak=self.peak,
            rms_dbfs=10 * math.log10(energy) if energy > 0 else -math.inf,
            clipped_share=self._clipped / max(self.samples, 1),
            dc_offset=self._sum / looked_at,
            silence_share=self._silent / max(self._frames, 1),
            bandwidth_hz=self.rate_hz / 2 if edge is None else edge,
            bandwidth=bandwidth,
            was_rate_hz=was,
        )


_WINDOW = np.hanning(FRAME).astype(np.float32)
_EDGES = np.linspace(1, FRAME // 2 + 1, CLIFF_BANDS + 1).astype(int)
_WIDTHS = np.diff(_EDGES)
_ONES = np.ones(FRAME, dtype=np.float32)


def cliff_hz(power: Float64[np.ndarray, " bins"], rate_hz: int) -> float | None:
    """Return where a mean power spectrum ends in a cliff, or None where it does not.

    A cliff is a fall of ``CLIFF_DB`` within two bands of a ``CLIFF_BANDS``-th of half the rate, with a flat floor
    above (steep resamplers, codecs), or of ``SLOPE_DB`` within three tenths of its frequency (resamplers of few
    taps): 80 dB an octave, which no sound has by itself. Below it the sound is there: the four bands before
    stand as far above everything that is above it. It lies where their level ends; a steep one is told first.
    """
    if not power.any():
        return None
    sums = np.add.reduceat(power, _EDGES[:-1]) / _WIDTHS
    levels = 10 * np.log10(sums + sums.max() * 1e-16)
    # A doubled rate mirrors the lowest frequencies to the very top, even where little else passes.
    levels[-MIRROR_BANDS:] = levels[-MIRROR_BANDS - 1]
    highest = np.maximum.accumulate(levels[::-1])[::-1]  # loudest band from here to the top
    lowest = np.minimum.accumulate(levels[::-1])[::-1]
    bands = np.arange(4, CLIFF_BANDS - 2)
    before = np.minimum(np.minimum(levels[:-6], levels[1:-5]), np.minimum(levels[2:-4], levels[3:-3]))
    near, far = bands + 2, np.minimum(np.ceil(bands * 1.3).astype(int), CLIFF_BANDS)
    floor = highest[near]
    flat = floor - lowest[near] <= EMPTY_DB + np.maximum(0.0, levels[bands - 1] - floor - CLIFF_DB)
    steep = (before - floor >= CLIFF_DB) & flat
    sloped = before - np.append(highest, np.inf)[far] >= SLOPE_DB
    heard = before > levels.max() - HEARD_DB
    for found, above in ((steep & heard, near), (sloped & heard, far)):
        if found.any():
            first = int(np.argmax(found))
            last = np.flatnonzero(levels[bands[first] - 1 : above[first]] >= before[first] - 6.0)[-1]
            return float((bands[first] + last) * rate_hz / 2 / CLIFF_BANDS)
    return None


def _named(edge_hz: float | None, rate_hz: int, container: str) -> tuple[str, int]:
    if edge_hz is None or edge_hz > FULL_SHARE * rate_hz / 2 or edge_hz < NARROW_HZ:
        return "full", 0
    lossy = LOSSY_HZ[0] <= edge_hz <= LOSSY_HZ[1]
    if lossy or (container in LOSSY_FORMATS and edge_hz >= LOSSY_FORMAT_HZ):
        return "lossy_lowpass", 0
    old = [r for r in USUAL_RATES_HZ if r < rate_hz and OLD_NYQUIST[0] <= edge_hz / (r / 2) <= OLD_NYQUIST[1]]
    if old:
        return "upsampled", min(
            old, key=lambda rate: abs(edge_hz / (rate / 2) - 0.99) + FAMILY_MARGIN * bool(rate_hz % rate)
        )
    return "narrow_band", 0


def wrong_encoding(path: str, container: str) -> str:
    """Return what the suffix claims against what the file holds ("wav holds MP3"), or "" where they agree."""
    suffix = Path(path).suffix.lower()
    known = FORMATS.get(suffix)
    return "" if known is None or container in known else f"{suffix[1:]} holds {container}"


def issues(row: dict[str, Any]) -> list[str]:
    """Return what is worth a look, of ``ISSUES``, from a clip's measures."""
    found = [
        ("clipping", row["clipped_share"] > CLIPPED_SHARE),
        ("dc_offset", abs(row["dc_offset"]) > OFFSET),
        ("silence", row["silence_share"] > SILENT_SHARE),
        ("upsampled", row["bandwidth"] == "upsampled"),
        ("lossy_lowpass", row["bandwidth"] == "lossy_lowpass"),
        ("narrow_band", row["bandwidth"] == "narrow_band"),
        ("wrong_encoding", bool(row["wrong_encoding"])),
        ("near_duplicate", bool(row.get("near_duplicate_of"))),
    ]
    return [name for name, present in found if present]
