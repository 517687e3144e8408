"""Decode every candidate once: what is usable becomes a manifest row, what is not becomes a reject with a reason."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32

from pipeline.audio import clip_source, decode, quality_report
from pipeline.audio.near_duplicates import Fingerprinter, near_duplicates
from pipeline.audio.quality import QualityMeter, wrong_encoding
from pipeline.audio.sources import Candidate
from pipeline.errors import AudioError
from pipeline.manifest import COLUMNS, settle_splits

BATCH = 64
REJECT_COLUMNS = ("root", "path", "dataset", "reason", "problem")
LABEL_COLUMNS = ("clip_id", "column", "value")
NearDuplicates = Literal["off", "report", "reject"]


@dataclass(frozen=True)
class Ingested:
    """What came of a list of candidates.

    Attributes:
        clips: manifest rows (``pipeline.manifest.COLUMNS``), one a distinct clip.
        rejects: ``REJECT_COLUMNS``, one a file that could not be used, duplicates included.
        quality: ``quality_report.COLUMNS``, one a clip, in the order of ``clips``.
        labels: ``LABEL_COLUMNS``: every label that its dataset gives a clip, beside the one in ``clips``.
    """

    clips: pd.DataFrame
    rejects: pd.DataFrame
    quality: pd.DataFrame
    labels: pd.DataFrame


def ingest(
    candidates: Sequence[Candidate],
    roots: dict[str, Path],
    *,
    min_seconds: float,
    validation_share: float,
    seed: int,
    workers: int,
    progress: Callable[[int], None] = lambda done: None,
    validation_shares: Mapping[str, float] | None = None,
    near: NearDuplicates = "off",
) -> Ingested:
    """Decode, measure, deduplicate by content and split.

    Args:
        candidates: files to look at, in order; of two with the same content the first is kept.
        roots: root key to folder.
        min_seconds: shorter clips are rejected.
        validation_share: share of each dataset's clips held out, whole groups at a time.
        seed: of the split.
        workers: processes; 1 decodes in this one.
        progress: called with the number of files done since the last call.
        validation_shares: dataset to a share of its own.
        near: whether clips that sound alike are looked for, and left out.
    """
    batches = [candidates[i : i + BATCH] for i in range(0, len(candidates), BATCH)]
    found: list[list[dict[str, Any]]] = [[] for _ in batches]
    settings = (roots, min_seconds, near != "off")
    if workers <= 1:
        for number, batch in enumerate(batches):
            found[number] = _look(list(batch), *settings)
            progress(len(batch))
    else:
        # Spawned, not forked: a pack that this process has open would break in a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            jobs = {pool.submit(_look, list(batch), *settings): n for n, batch in enumerate(batches)}
            try:
                for job in as_completed(jobs):
                    found[jobs[job]] = job.result()
                    progress(len(batches[jobs[job]]))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    rows = [row for rows in found for row in rows]
    return _tables(rows, validation_share, seed, validation_shares or {}, near)


class _Observers:
    """Hands each block to the meter and, where wanted, to the fingerprinter."""

    def __init__(self, fingerprints: bool) -> None:
        self.meter = QualityMeter()
        self.fingerprinter = Fingerprinter() if fingerprints else None

    def add(self, block: Float32[np.ndarray, " samples"], peak: float, rate_hz: int) -> None:
        self.meter.add(block, peak, rate_hz)
        if self.fingerprinter is not None:
            self.fingerprinter.add(block, peak, rate_hz)


def _look(
    batch: list[Candidate], roots: dict[str, Path], min_seconds: float, fingerprints: bool
) -> list[dict[str, Any]]:
    rows = []
    for candidate in batch:
        row: dict[str, Any] = asdict(candidate)
        observers = _Observers(fingerprints)
        try:
            found = clip_source.inspect(roots[candidate.root] / candidate.path, min_seconds, observers)
        except AudioError as error:
            problem = error.problem if error.got is None else f"{error.problem} ({error.got})"
            row.update(reason=error.reason, problem=problem)
        else:
            row.update(
                clip_id=found.digest[:16],
                sample_rate_hz=found.info.sample_rate_hz,
                channels=found.info.channels,
                frames=found.info.frames,
                duration_seconds=found.info.duration_seconds,
                encoding=f"{found.info.format} {found.info.subtype}",
                wrong_encoding=wrong_encoding(candidate.path, found.info.format),
                near_duplicate_of="",
                reason="",
                problem="",
            )
            row["quality"] = asdict(observers.meter.measured(found.info.format))
            made = observers.fingerprinter.made() if observers.fingerprinter is not None else None
            row["fingerprint"] = made
        rows.append(row)
    return rows


def _tables(
    rows: list[dict[str, Any]],
    validation_share: float,
    seed: int,
    shares: Mapping[str, float],
    near: NearDuplicates,
) -> Ingested:
    clips: dict[str, dict[str, Any]] = {}
    rejects = []
    if near != "off":
        _mark_near_duplicates(rows, near)
    for row in rows:
        # A name that is not UTF-8 reaches us as surrogates, which Parquet refuses; it is kept readable instead.
        readable = decode.displayed(row["path"])
        if not row["reason"] and row["path"] != readable:
            row.update(reason="name_not_utf8", problem="the file's name is not UTF-8: rename it")
        row["path"] = readable
        if not row["reason"] and row["clip_id"] in clips:
            twin = clips[row["clip_id"]]["path"]
            row.update(reason="duplicate", problem=f"the same sound as {twin}")
        if row["reason"]:
            rejects.append({column: row[column] for column in REJECT_COLUMNS})
        else:
            clips[row["clip_id"]] = row
    frame = pd.DataFrame(clips.values(), columns=[*COLUMNS])
    frame = settle_splits(frame, validation_share, seed, shares)
    frame = frame.astype(COLUMNS).sort_values(["dataset", "path"], kind="stable", ignore_index=True)
    kept = [clips[clip] for clip in frame["clip_id"]]
    return Ingested(
        clips=frame,
        rejects=pd.DataFrame(rejects, columns=list(REJECT_COLUMNS)).astype("str"),
        quality=quality_report.table([row | row["quality"] for row in kept]),
        labels=pd.DataFrame(
            [(row["clip_id"], name, value) for row in kept for name, value in row["columns"]],
            columns=list(LABEL_COLUMNS),
        ).astype("str"),
    )


def _mark_near_duplicates(rows: list[dict[str, Any]], near: NearDuplicates) -> None:
    usable = [row for row in rows if not row["reason"]]
    first = {row["clip_id"]: number for number, row in reversed(list(enumerate(usable)))}
    # An exact copy is a duplicate already; only the first of each sound takes part.
    prints = [row["fingerprint"] if first[row["clip_id"]] == n else None for n, row in enumerate(usable)]
    for number, twin in near_duplicates(prints).items():
        row, other = usable[number], usable[twin]
        row["near_duplicate_of"] = other["clip_id"]
        if near == "reject":
            row.update(reason="near_duplicate", problem=f"sounds like {decode.displayed(other['path'])}")
