"""DEAR's eight tasks from its metadata, trap by trap (arXiv 2502.06664, ICASSP 2025; Zenodo 14646595).

Read: ``DEAR_metadata.csv`` with ``id``, ``split`` (development or test), ``environmentClass``, ``indoorOrOutdoor``,
``stationaryOrTransientNoise``, ``nTargets``, ``targetRT60`` (s), ``targetDRR`` (dB), ``targetSNR_k`` (dB) and
``nTargetsActive_k`` of each second k from 1, and ``files/<id>.wav``. Any cell may be empty, which is *no label*:
never "no speech", never 0. docs/dear.md lists where this differs from the public dataset class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from pipeline import artifact, config
from pipeline.audio.tables import csv_rows
from pipeline.errors import ManifestError, MissingArtifactError, NothingToTellApartError
from pipeline.evaluation.split_task import SplitTask

TABLE, AUDIO = "DEAR_metadata.csv", "files"
DEVELOPMENT, TEST = "development", "test"
SPEECH, NO_SPEECH = "speech", "no speech"
RT60_COLUMN = "targetRT60"
TRACK_COLUMNS = (
    "environmentClass", "indoorOrOutdoor", "stationaryOrTransientNoise", "nTargets", RT60_COLUMN, "targetDRR",
)  # fmt: skip
SNR_COLUMN, ACTIVE_COLUMN = "targetSNR", "nTargetsActive"
CLASS_TASKS = (
    ("environment", "Environment", "environmentClass"),
    ("indoor_outdoor", "Indoor or outdoor", "indoorOrOutdoor"),
    ("stationary_transient", "Stationary or transient noise", "stationaryOrTransientNoise"),
)
ONE_TARGET_TASKS = (
    ("drr", "DRR", "Direct-to-reverberant ratio of the one target speaker, dB.", "targetDRR"),
    ("rt60", "RT60", "Natural logarithm of the reverberation time in seconds.", RT60_COLUMN),
)
TASKS = (
    "environment", "indoor_outdoor", "stationary_transient",
    "speech_present", "speakers_active", "drr", "rt60", "snr",
)  # fmt: skip


@dataclass(frozen=True)
class DearTracks:
    """The tracks of a folder in DEAR's layout.

    Attributes:
        paths: (tracks,) sound files, in the order of their ids.
        ids, held_out: (tracks,).
        seconds: scored seconds of a track, 30 in DEAR.
        cells: column to (tracks,) text, "" where empty.
        snr_db, active: (tracks, seconds); NaN where empty.
        table_digest: SHA-256 of the table.
    """

    paths: list[Path]
    ids: np.ndarray
    held_out: Bool[np.ndarray, " tracks"]
    seconds: int
    cells: dict[str, np.ndarray]
    snr_db: Float[np.ndarray, "tracks seconds"]
    active: Float[np.ndarray, "tracks seconds"]
    table_digest: str

    @cached_property
    def audio_digests(self) -> list[str]:
        """SHA-256 of every track's bytes, read once."""
        return [artifact.file_digest(path) for path in self.paths]

    def digest(self) -> str:
        """Return the digest of the table and of every track's bytes."""
        return config.digest({"table": self.table_digest, "audio": self.audio_digests})


def read(root: Path) -> DearTracks:
    """Return the tracks under ``root``.

    Raises:
        MissingArtifactError: no such folder, or a track that the table lists is not there.
        ManifestError: a column is missing, an id or split is impossible, or a cell is no number where one belongs.
    """
    table = root / TABLE
    if not table.is_file():
        raise MissingArtifactError(
            f"{root} is no folder of DEAR's layout",
            expected=str(table),
            run="--set evaluate.audio_roots.dear=FOLDER",
        )
    rows = sorted(csv_rows(table, ("id", "split", *TRACK_COLUMNS)), key=lambda row: row["id"])
    if not rows:
        raise ManifestError(f"{table} lists no track")
    seconds = _seconds(list(rows[0]), table)
    ids = [_id(row["id"], table) for row in rows]
    repeated = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if repeated:
        raise ManifestError(f"{table} lists a track twice", got=repeated[0])
    for row in rows:
        if row["split"].strip() not in (DEVELOPMENT, TEST):
            raise ManifestError(
                f"{table}: track {row['id']} is in no known split", expected=f"{DEVELOPMENT} or {TEST}",
                got=row["split"],
            )  # fmt: skip
    paths = [root / AUDIO / f"{name}.wav" for name in ids]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise MissingArtifactError(
            f"{len(absent)} of {len(paths)} tracks are not there", expected=str(absent[0]),
            run=f"unpack all of the dataset's archives into {root}",
        )  # fmt: skip
    cells = {name: np.array([_cell(row[name]) for row in rows]) for name in TRACK_COLUMNS}

    def per_second(column: str) -> np.ndarray:
        names = [f"{column}_{second}" for second in range(1, seconds + 1)]
        return np.array([[number(_cell(row[name]), name, row["id"]) for name in names] for row in rows])

    return DearTracks(
        paths, np.array(ids), np.array([row["split"].strip() == TEST for row in rows]), seconds, cells,
        per_second(SNR_COLUMN), per_second(ACTIVE_COLUMN), artifact.file_digest(table),
    )  # fmt: skip


def tasks(tracks: DearTracks, prefix: str = "dear") -> list[SplitTask]:
    """Return the eight tasks, ``<prefix>_environment`` ... ``<prefix>_snr``.

    Raises:
        NothingToTellApartError: a split of a task has one class or no row.
        ManifestError: a label is impossible.
    """
    return [build() for build in _builders(tracks, prefix).values()]


def possible_tasks(
    tracks: DearTracks, prefix: str = "dear"
) -> tuple[list[SplitTask], dict[str, NothingToTellApartError]]:
    """Return those of the eight tasks that these tracks pose, and by title why not the others.

    Scenes that are all indoors, say, have nothing to tell of indoor and outdoor.

    Raises:
        ManifestError: a label is impossible.
    """
    found, impossible = list[SplitTask](), dict[str, NothingToTellApartError]()
    for title, build in _builders(tracks, prefix).items():
        try:
            found.append(build())
        except NothingToTellApartError as error:
            impossible[title] = error
    return found, impossible


def _builders(tracks: DearTracks, prefix: str) -> dict[str, Callable[[], SplitTask]]:
    """Return what makes each task, by its title, in DEAR's order."""
    return {
        **{which[1]: partial(_class_task, tracks, prefix, *which) for which in CLASS_TASKS},
        "Speech present": partial(_speech_present, tracks, prefix),
        "Speakers active": partial(_speakers_active, tracks, prefix),
        **{which[1]: partial(_one_target, tracks, prefix, *which) for which in ONE_TARGET_TASKS},
        "SNR": partial(_snr, tracks, prefix),
    }


def number(text: str, column: str, track: str) -> float:
    """Return a cell's number; NaN for an empty one.

    Raises:
        ManifestError: it is neither.
    """
    if not text:
        return math.nan
    try:
        return float(text)
    except ValueError as error:
        raise ManifestError(
            f"{TABLE}: {column} of track {track} is no number", expected="a number or nothing", got=text
        ) from error


def _class_task(tracks: DearTracks, prefix: str, name: str, title: str, column: str) -> SplitTask:
    labels = tracks.cells[column]
    rows = np.flatnonzero(labels != "")
    return SplitTask(
        f"{prefix}_{name}", title, f"{column} of the whole track.", "mcc", "track", rows, labels[rows],
        tracks.ids[rows], tracks.held_out[rows], _empty(len(labels) - len(rows)),
    )  # fmt: skip


def _speech_present(tracks: DearTracks, prefix: str) -> SplitTask:
    active = tracks.active.ravel()
    about = "Whether a target speaker is active in the second; a second without a label is left out."
    return _second_task(
        tracks, f"{prefix}_speech_present", "Speech present", about, "mcc", ~np.isnan(active),
        np.where(active > 0, SPEECH, NO_SPEECH),
    )  # fmt: skip


def _speakers_active(tracks: DearTracks, prefix: str) -> SplitTask:
    active = tracks.active.ravel()
    known = ~np.isnan(active)
    wrong = active[known & ((active < 0) | (active % 1 != 0))]
    if len(wrong):
        raise ManifestError(f"{TABLE}: {ACTIVE_COLUMN} is no count", expected="0, 1, 2, ...", got=wrong[0])
    about = "How many target speakers are active in the second, as a value."
    return _second_task(tracks, f"{prefix}_speakers_active", "Speakers active", about, "r2", known, active)


def _snr(tracks: DearTracks, prefix: str) -> SplitTask:
    values = tracks.snr_db.ravel()
    about = "Ratio of target to background in the second, dB; a silent target's is infinite and no value."
    return _second_task(tracks, f"{prefix}_snr", "SNR", about, "r2", np.isfinite(values), values)


def _one_target(tracks: DearTracks, prefix: str, name: str, title: str, about: str, column: str) -> SplitTask:
    """Return DRR or RT60: tracks with one target speaker, seconds in which that speaker is known to be active."""
    targets, values = (
        np.array([number(t, each, i) for t, i in zip(tracks.cells[each], tracks.ids, strict=True)])
        for each in ("nTargets", column)
    )
    # Comparisons with NaN are false, so that an unknown number of speakers is neither one nor active.
    alone = (targets[:, None] == 1) & (tracks.active >= 1)
    if column == RT60_COLUMN:
        wrong = np.flatnonzero((targets == 1) & (values <= 0))
        if len(wrong):
            raise ManifestError(
                f"{TABLE}: {column} of track {tracks.ids[wrong[0]]} has no logarithm", expected="seconds > 0",
                got=values[wrong[0]],
            )  # fmt: skip
        values = np.log(np.where(values > 0, values, np.nan))
    kept = (alone & np.isfinite(values)[:, None]).ravel()
    about = f"{about} Seconds in which that speaker is active."
    return _second_task(
        tracks, f"{prefix}_{name}", title, about, "r2", kept, np.repeat(values, tracks.seconds)
    )


def _second_task(
    tracks: DearTracks,
    name: str,
    title: str,
    about: str,
    metric: str,
    kept: np.ndarray,
    truth: np.ndarray,
) -> SplitTask:
    rows = np.flatnonzero(kept)
    track = rows // tracks.seconds
    return SplitTask(
        name, title, about, metric, "second", rows, truth[rows], tracks.ids[track], tracks.held_out[track],
        _empty(len(kept) - len(rows)),
    )  # fmt: skip


def _empty(count: int) -> dict[str, int]:
    return {"no label for this task": count} if count else {}


def _cell(text: str) -> str:
    """Return a cell without blanks; pandas writes a missing value as "" or, when told to, as "nan"."""
    text = text.strip()
    return "" if text.lower() == "nan" else text


def _id(text: str, table: Path) -> str:
    # An id becomes a path: text as it stands ("007" stays "007"), one part, no way out of the folder.
    if not re.fullmatch(r"[^/\\\0]+", text) or text in (".", ".."):
        raise ManifestError(f"{table}: an id is no file name", got=repr(text))
    return text


def _seconds(columns: Sequence[str], table: Path) -> int:
    """Return how many seconds have labels; both kinds must be numbered 1, 2, ... without a gap.

    Raises:
        ManifestError: they are not.
    """
    counts = []
    for column in (SNR_COLUMN, ACTIVE_COLUMN):
        found = {int(match[1]) for name in columns if (match := re.fullmatch(rf"{column}_([1-9]\d*)", name))}
        if not found or found != set(range(1, len(found) + 1)):
            raise ManifestError(
                f"{table}: columns {column}_k are not numbered from 1 without a gap",
                expected=f"{column}_1, {column}_2, ...", got=sorted(found)[:5],
            )  # fmt: skip
        counts.append(len(found))
    if counts[0] != counts[1]:
        raise ManifestError(f"{table}: as many {SNR_COLUMN}_k as {ACTIVE_COLUMN}_k", got=counts)
    return counts[0]
