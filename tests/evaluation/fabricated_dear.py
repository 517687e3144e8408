"""A folder of DEAR's layout whose answers are known: every label is the amplitude of a tone in the sound."""

from __future__ import annotations

import csv
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32, Float64

from pipeline import config
from pipeline.evaluation.window_batch import SAMPLE_RATE_HZ, WindowBatch

RATE_HZ = 48_000
SECONDS = 2
ENVIRONMENTS = ("Domestic", "Leisure", "Nature", "Professional", "Transport")
TARGETS = 3
# One tone a feature, whole periods in a second, far below either rate's Nyquist frequency.
FEATURES = (*ENVIRONMENTS, "outdoor", "transient", "speech", "active", "snr", "drr", "rt60")
FREQUENCIES_HZ = {name: 200.0 + 100.0 * place for place, name in enumerate(FEATURES)}
COLUMNS = (
    "id", "split", "environmentClass", "indoorOrOutdoor", "stationaryOrTransientNoise", "nTargets", "targetRT60",
    "targetDRR",
)  # fmt: skip
Row = dict[str, str]


def rows(seconds: int = SECONDS) -> list[Row]:
    """Return 45 development and 30 test tracks of scenes and 12 and 8 that carry the noise label alone."""
    found = []
    for split, scenes, noises in (("development", 45, 12), ("test", 30, 8)):
        cases = itertools.cycle(itertools.product(range(1, TARGETS + 1), ENVIRONMENTS))
        for number, (targets, environment) in zip(range(scenes), cases, strict=False):
            if split == "development" and number in (2, 17):
                environment = "Leisure"  # so that of the two, Nature is the rarer
            row = {"id": f"{split[0]}{number:03}", "split": split, "environmentClass": environment}
            row |= {
                "indoorOrOutdoor": "outdoor" if environment in ("Nature", "Transport") else "indoor",
                "stationaryOrTransientNoise": "", "nTargets": f"{targets}.0",
                "targetRT60": f"{0.2 + 0.1 * (number % 7):.1f}",
                "targetDRR": str((number // 15 * 2 + number % 3) % 5 - 3),
            }  # fmt: skip
            for second in range(1, seconds + 1):
                row[f"targetSNR_{second}"] = str((number * 3 + second * 5) % 11 - 5)
                row[f"nTargetsActive_{second}"] = str((number // 15 + second) % (targets + 1))
            found.append(row)
        for number in range(noises):
            row = dict.fromkeys((*COLUMNS, *second_columns(seconds)), "")
            row |= {"id": f"{split[0]}n{number:02}", "split": split}
            row["stationaryOrTransientNoise"] = ("transient", "stationary")[number % 2]
            found.append(row)
    return found


def second_columns(seconds: int = SECONDS) -> list[str]:
    return [f"{name}_{k}" for name in ("targetSNR", "nTargetsActive") for k in range(1, seconds + 1)]


def write_table(root: Path, table: Sequence[Row], *, silent: bool = True) -> Path:
    """Write the metadata, and for tests of the table alone (``silent``) empty files for the tracks."""
    (root / "files").mkdir(parents=True, exist_ok=True)
    with (root / "DEAR_metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    if silent:
        for row in table:
            (root / "files" / f"{row['id']}.wav").touch()
    return root


def write(root: Path, table: Sequence[Row] | None = None) -> Path:
    """Write table and sounds; the last track of each split ends a thousand samples early."""
    table = rows() if table is None else table
    write_table(root, table, silent=False)
    last = {row["split"]: row["id"] for row in table}
    for row in table:
        samples = SECONDS * RATE_HZ - (1_000 if row["id"] in last.values() else 0)
        soundfile.write(root / "files" / f"{row['id']}.wav", sound(row)[:samples], RATE_HZ, subtype="FLOAT")
    return root


def amplitudes(row: Row, second: int) -> dict[str, float]:
    """Return each tone's amplitude in a second (from 1); 0.05 stands for no label, too."""
    active = row[f"nTargetsActive_{second}"]
    # In the order of FEATURES.
    found = {name: float(row["environmentClass"] == name) for name in ENVIRONMENTS}
    found["outdoor"] = float(row["indoorOrOutdoor"] == "outdoor")
    found["transient"] = float(row["stationaryOrTransientNoise"] == "transient")
    found["speech"] = float(float(active or 0) > 0)
    found["active"] = float(active or 0) / TARGETS
    found["snr"] = (float(row[f"targetSNR_{second}"] or 0) + 5) / 10
    found["drr"] = (float(row["targetDRR"] or 0) + 3) / 5
    found["rt60"] = math.log(float(row["targetRT60"] or 0.2) / 0.2) / math.log(4)
    return {name: 0.05 * (1 + value) for name, value in found.items()}


def sound(row: Row) -> Float32[np.ndarray, " samples"]:
    """Return the track: in each second the sum of its tones."""
    seconds = [list(amplitudes(row, second).values()) for second in range(1, SECONDS + 1)]
    return np.concatenate([tones(RATE_HZ, RATE_HZ) @ values for values in seconds]).astype(np.float32)


@functools.lru_cache
def tones(rate_hz: int, samples: int) -> Float64[np.ndarray, "samples tones"]:
    """Return every tone at amplitude 1."""
    time = np.arange(samples)[:, None] / rate_hz
    return np.sin(2 * np.pi * time * np.array(list(FREQUENCIES_HZ.values())))


@dataclass
class ToneReader:
    """Hears the amplitude of each tone, of which ``deaf_to`` are always 0; counts what it hears."""

    deaf_to: tuple[str, ...] = ()
    windows: int = 0

    def digest(self) -> str:
        return config.digest({"tones without": self.deaf_to})

    def embed(self, batch: WindowBatch) -> Float32[np.ndarray, "windows dim"]:
        waveforms = batch.waveforms.numpy().astype(np.float64)
        self.windows += len(waveforms)
        samples = waveforms.shape[1]
        heard = 2 * waveforms @ tones(SAMPLE_RATE_HZ, samples) / samples
        heard[:, [FEATURES.index(name) for name in self.deaf_to]] = 0
        return heard.astype(np.float32)


class Constant:
    """Hears nothing."""

    def digest(self) -> str:
        return config.digest("constant")

    def embed(self, batch: WindowBatch) -> Float32[np.ndarray, "windows dim"]:
        return np.ones((len(batch.waveforms), 4), dtype=np.float32)
