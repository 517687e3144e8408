"""Scenes as files: DEAR's table and sound files, and beside them what each track was made of, under which licences.

<root>/DEAR_metadata.csv, <root>/files/<id>.wav       what DEAR's readers read
<root>/records/<id>.json                              one a finished track, written last
<root>/{tracks,provenance,licences,rejects}.parquet   collected from the records
<root>/stems/<id>_{target,background}.wav, <id>_responses.npy    where ``scenes.stems`` asks for them
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

from pipeline import artifact
from pipeline.scenes.material import REJECT_COLUMNS
from pipeline.scenes.schedule import Slot
from pipeline.scenes.track import Track

TABLE, AUDIO, RECORDS, STEMS = "DEAR_metadata.csv", "files", "records", "stems"
TRACK_COLUMNS = (
    "environmentClass", "indoorOrOutdoor", "stationaryOrTransientNoise", "nTargets", "targetRT60", "targetDRR",
)  # fmt: skip
PART_COLUMNS = (
    "id", "split", "role", "clip_id", "dataset", "path", "group", "start_seconds", "offset_seconds", "seconds",
    "licence", "credit",
)  # fmt: skip
LICENCE_COLUMNS = ("clip_id", "dataset", "path", "licence", "credit")


def columns(seconds: int) -> list[str]:
    """Return DEAR's columns for tracks of so many seconds, 30 in DEAR."""
    numbered = [f"{name}_{k}" for name in ("targetSNR", "nTargetsActive") for k in range(1, seconds + 1)]
    return ["id", "split", *TRACK_COLUMNS, *numbered]


def write_track(root: Path, slot: Slot, track: Track, rate_hz: int, *, stems: bool) -> dict[str, Any]:
    """Write a track's files and, last, its record; return the record."""
    files = {f"{AUDIO}/{slot.name}.wav": wav(track.mix, rate_hz, "PCM_16")}
    if stems:
        files[f"{STEMS}/{slot.name}_target.wav"] = wav(track.target, rate_hz, "PCM_24")
        files[f"{STEMS}/{slot.name}_background.wav"] = wav(track.background, rate_hz, "PCM_24")
        files[f"{STEMS}/{slot.name}_responses.npy"] = _responses(track)
    for name, content in files.items():
        artifact.write_bytes(root / name, content)
    record = {
        "id": slot.name, "split": slot.split, "labels": track.labels, "facts": track.facts,
        "parts": track.parts.used, "rejects": track.parts.rejects,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }  # fmt: skip
    artifact.write_json(root / RECORDS / f"{slot.name}.json", record)
    return record


def finished_track(root: Path, slot: Slot) -> dict[str, Any] | None:
    """Return the record of a track whose files are all there with the bytes they were written with."""
    path = root / RECORDS / f"{slot.name}.json"
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = dict(record["files"])
        whole = {"labels", "facts", "parts", "rejects"} <= set(record) and bool(files)
    except (ValueError, KeyError, TypeError):
        return None
    there = all((root / name).is_file() for name in files)
    same = whole and there and all(artifact.file_digest(root / n) == digest for n, digest in files.items())
    return record if same else None


def write_tables(
    root: Path, records: Sequence[dict[str, Any]], rejects: Iterable[dict[str, str]], seconds: int
) -> None:
    """Write DEAR's table and the tables beside it."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns(seconds), lineterminator="\n")
    writer.writeheader()
    for record in records:
        cells = {"id": record["id"], "split": record["split"], **record["labels"]}
        writer.writerow({name: "" if value is None else value for name, value in cells.items()})
    artifact.write_bytes(root / TABLE, text.getvalue().encode())
    parts = [
        {"id": record["id"], "split": record["split"], **part}
        for record in records
        for part in record["parts"]
    ]
    table = pd.DataFrame(parts, columns=list(PART_COLUMNS))
    _write(root / "provenance.parquet", table)
    sources = table.groupby(list(LICENCE_COLUMNS), as_index=False, sort=True)
    _write(root / "licences.parquet", sources.agg(tracks=("id", "nunique"), seconds=("seconds", "sum")))
    _write(root / "tracks.parquet", pd.DataFrame([_facts(record) for record in records]))
    refused = {tuple(row[name] for name in REJECT_COLUMNS): row for row in rejects}
    for record in records:
        refused |= {tuple(row[name] for name in REJECT_COLUMNS): row for row in record["rejects"]}
    rows = [refused[key] for key in sorted(refused)]
    _write(root / "rejects.parquet", pd.DataFrame(rows, columns=list(REJECT_COLUMNS)).astype("str"))


def wav(signal: np.ndarray, rate_hz: int, subtype: str) -> bytes:
    """Return a mono WAV file; integer samples, so that its header holds no time of writing."""
    content = io.BytesIO()
    soundfile.write(content, signal, rate_hz, subtype=subtype, format="WAV")
    return content.getvalue()


def _responses(track: Track) -> bytes:
    longest = max(len(response.taps) for response in track.responses)
    table = np.zeros((len(track.responses), longest), dtype=np.float32)
    for row, response in zip(table, track.responses, strict=True):
        row[: len(response.taps)] = response.taps
    content = io.BytesIO()
    np.save(content, table, allow_pickle=False)
    return content.getvalue()


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    facts = record["facts"]
    room = {f"room_{name}": value for name, value in facts["room"].items()}
    rest = {name: value for name, value in facts.items() if name != "room"}
    return {"id": record["id"], "split": record["split"], **room, **rest,
            "sha256": record["files"][f"{AUDIO}/{record['id']}.wav"]}  # fmt: skip


def _write(path: Path, table: pd.DataFrame) -> None:
    with artifact.replacing(path) as temporary:
        table.to_parquet(temporary, index=False)
