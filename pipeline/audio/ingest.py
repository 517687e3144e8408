"""Decode every candidate once: what is usable becomes a manifest row, what is not becomes a reject with a reason."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.audio import decode
from pipeline.audio.sources import Candidate
from pipeline.errors import AudioError
from pipeline.manifest import COLUMNS, assign_splits

BATCH = 64
REJECT_COLUMNS = ("root", "path", "dataset", "reason", "problem")


@dataclass(frozen=True)
class Ingested:
    """What came of a list of candidates.

    Attributes:
        clips: manifest rows (``pipeline.manifest.COLUMNS``), one a distinct clip.
        rejects: ``REJECT_COLUMNS``, one a file that could not be used, duplicates included.
    """

    clips: pd.DataFrame
    rejects: pd.DataFrame


def ingest(
    candidates: Sequence[Candidate],
    roots: dict[str, Path],
    *,
    min_seconds: float,
    validation_share: float,
    seed: int,
    workers: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Ingested:
    """Decode, deduplicate by content and split.

    Args:
        candidates: files to look at, in order; of two with the same content the first is kept.
        roots: root key to folder.
        min_seconds: shorter clips are rejected.
        validation_share: share of each dataset's clips held out, whole groups at a time.
        seed: of the split.
        workers: processes; 1 decodes in this one.
        progress: called with the number of files done since the last call.
    """
    batches = [candidates[i : i + BATCH] for i in range(0, len(candidates), BATCH)]
    found: list[list[dict[str, Any]]] = [[] for _ in batches]
    if workers <= 1:
        for number, batch in enumerate(batches):
            found[number] = _look(list(batch), roots, min_seconds)
            progress(len(batch))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            jobs = {pool.submit(_look, list(batch), roots, min_seconds): n for n, batch in enumerate(batches)}
            try:
                for job in as_completed(jobs):
                    found[jobs[job]] = job.result()
                    progress(len(batches[jobs[job]]))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return _tables([row for rows in found for row in rows], validation_share, seed)


def _look(batch: list[Candidate], roots: dict[str, Path], min_seconds: float) -> list[dict[str, Any]]:
    rows = []
    for candidate in batch:
        row: dict[str, Any] = asdict(candidate)
        try:
            found = decode.inspect(roots[candidate.root] / candidate.path, min_seconds)
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
                reason="",
                problem="",
            )
        rows.append(row)
    return rows


def _tables(rows: list[dict[str, Any]], validation_share: float, seed: int) -> Ingested:
    clips: dict[str, dict[str, Any]] = {}
    rejects = []
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
    frame["fold"] = -1
    frame["split"] = assign_splits(frame, validation_share, seed)
    frame = frame.astype(COLUMNS).sort_values(["dataset", "path"], kind="stable", ignore_index=True)
    return Ingested(frame, pd.DataFrame(rejects, columns=list(REJECT_COLUMNS)).astype("str"))
