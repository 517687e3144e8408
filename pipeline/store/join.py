"""Joins published logits to a store: an array more, for the clips that the file covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import pandas

from pipeline.errors import StoreError
from pipeline.store import encoding, tables
from pipeline.store.commits import read_marker
from pipeline.store.location import Location, Place, at
from pipeline.store.logits_files import Entry, LogitsFile, clip_id
from pipeline.store.schema import CLIPS_FILE, OK, ArraySpec, output_spec, read_meta
from pipeline.store.writer import StoreWriter

CLEAN = "clean"


@dataclass(frozen=True)
class Coverage:
    """Which rows of a store a logits file covers.

    Attributes:
        array: path of the array that was made.
        rows: usable clean rows.
        covered: of them, those with logits.
        by_split: split to (covered, rows).
        views: rows of other views: their sound is not what the file's teacher heard, and none is covered.
        clips_in_file: distinct ids in the file.
        clips_used: of them, those that a row of the store belongs to.
        unusable: rows whose logits in the file are not finite or name a class twice.
        uncovered_ids: some of the ids that the file lacks.
    """

    array: str
    rows: int
    covered: int
    by_split: dict[str, tuple[int, int]]
    views: int
    clips_in_file: int
    clips_used: int
    unusable: int
    uncovered_ids: tuple[str, ...]


def join(
    place: Place | Location,
    source: LogitsFile,
    ids: Sequence[str],
    name: str,
    *,
    dtype: Literal["float16", "float32"] = "float16",
    licence: str = "",
    citation: str = "",
) -> Coverage:
    """Add the logits of ``source`` to the store at ``place``; rows it does not cover are missing, never zero.

    A row that is missing here stays usable in every other array; whoever reads these logits sees it as
    ``missing``.

    Args:
        place: a finished store.
        source: the logits.
        ids: one a row of the store: what the file may call its clip.
        name: of the teacher, as stage 2 will ask for it (``NAME:logits``).
        dtype: as stored.
        licence: of the logits.
        citation: of their teacher.

    Raises:
        StoreError: no row is covered, or ``ids`` does not fit the store.
    """
    location = at(place)
    marker, meta = read_marker(location, run="ossicle embed"), read_meta(location)
    rows = tables.load(location, CLIPS_FILE)
    if len(ids) != len(rows):
        raise StoreError("one id a row is needed", expected=len(rows), got=len(ids))
    spec = _spec(source, name, dtype, licence, citation)
    clean = (
        (rows["view"] == CLEAN).to_numpy() if "view" in rows.columns else numpy.ones(len(rows), dtype=bool)
    )
    usable = (rows["status"] == OK).to_numpy()
    keys = [clip_id(str(one)) for one in ids]
    found = numpy.full(len(rows), -1, dtype=numpy.int64)
    for row in numpy.flatnonzero(clean & usable):
        entries = source.entries.get(keys[row])
        if entries:
            found[row] = _best(entries, rows, int(row)).row
    if (found < 0).all():
        some = next(iter(source.entries), "none")
        raise StoreError(
            "the logits file covers no row of the store",
            expected=f"ids like {keys[0]!r}",
            got=f"ids like {some!r}",
            run="give --ids the column, or the CSV, that holds the clips' names in the file",
        )
    described = meta.model_copy(update={"arrays": (spec,), "rows": 0, "rows_digest": ""})
    with StoreWriter.create(location, rows, described) as writer:
        bad = sum(_write(writer, spec, source, found, shard) for shard in writer.pending([spec.digest]))
        derived = {"rows", "ok", "rejected", "shards", "arrays"}
        summary = {key: value for key, value in marker.summary.items() if key not in derived}
        report = _coverage(spec, source, rows, keys, found >= 0, clean & usable, bad)
        joined = {**summary.get("joined", {}), spec.path: {"rows": report.rows, "covered": report.covered}}
        complete = [one.digest for one in writer.meta.arrays if one.path in marker.summary["arrays"]]
        writer.finish(
            [*complete, spec.digest],
            config=marker.config,
            inputs=marker.inputs,
            summary={**summary, "joined": joined},
        )
    return report


def _spec(source: LogitsFile, name: str, dtype: Any, licence: str, citation: str) -> ArraySpec:
    config: dict[str, Any] = {"citation": citation, "joined": True}
    if source.note:
        config["note"] = source.note
    return output_spec(
        name, source.digest, "logits", (source.classes,), dtype, config, licence, top_k=source.top_k
    )


def _best(entries: list[Entry], rows: pandas.DataFrame, row: int) -> Entry:
    """Return the entry whose part of the clip the row's window overlaps most; of equal ones the first."""
    if len(entries) == 1 or "start_seconds" not in rows.columns:
        return entries[0]
    start = float(rows["start_seconds"].iloc[row])
    end = start + float(rows["duration_seconds"].iloc[row]) if "duration_seconds" in rows.columns else start
    overlap = [min(end, one.end_seconds) - max(start, one.start_seconds) for one in entries]
    return entries[int(numpy.argmax(overlap))]


def _write(writer: StoreWriter, spec: ArraySpec, source: LogitsFile, found: numpy.ndarray, shard: int) -> int:
    """Write one shard; return how many of its rows the file has no usable logits for though it lists them."""
    start, stop = writer.meta.bounds(shard)
    rows = found[start:stop]
    there = numpy.flatnonzero(rows >= 0)
    read = source.read(rows[there])
    stored = {}
    names = ("values", "indices", "tail") if spec.top_k is not None else (spec.data_name,)
    for name in names:
        values = read[name]
        fill = -1 if values.dtype.kind in "iu" else numpy.nan
        stored[name] = numpy.full((stop - start, *values.shape[1:]), fill, dtype=values.dtype)
        stored[name][there] = values
    stored = encoding.cast(spec, stored)
    finite = numpy.ones(stop - start, dtype=bool)
    for values in stored.values():
        if values.dtype.kind == "f":
            finite &= numpy.isfinite(values.reshape(len(values), -1)).all(axis=1)
    for values in stored.values():
        values[~finite] = -1 if values.dtype.kind == "i" else numpy.nan
    missing = numpy.flatnonzero(~finite) + start
    writer.write_members(shard, spec, stored, tables.rejects_table(None), missing.tolist())
    return int((rows >= 0).sum() - finite.sum())


def _coverage(
    spec: ArraySpec,
    source: LogitsFile,
    rows: pandas.DataFrame,
    keys: list[str],
    covered: numpy.ndarray,
    wanted: numpy.ndarray,
    bad: int,
) -> Coverage:
    split = rows["split"].to_numpy(dtype=object) if "split" in rows.columns else numpy.full(len(rows), "all")
    by_split = {
        str(name): (int((covered & (split == name)).sum()), int((wanted & (split == name)).sum()))
        for name in sorted(set(split))
    }
    lacking = dict.fromkeys(keys[row] for row in numpy.flatnonzero(wanted & ~covered))
    usable = int((rows["status"] == OK).sum())
    return Coverage(
        spec.path,
        int(wanted.sum()),
        int(covered.sum()) - bad,
        by_split,
        usable - int(wanted.sum()),
        len(source.entries),
        len({keys[row] for row in numpy.flatnonzero(covered)}),
        bad,
        tuple(lacking)[:8],
    )
