"""``ossicle store merge | join | export-hdf5 | import-hdf5``: whole stores and published logits, in and out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pandas
from rich.console import Console
from rich.table import Table

from pipeline.errors import ConfigError, StoreError
from pipeline.store import tables
from pipeline.store.commits import read_marker
from pipeline.store.hdf5_file import export_hdf5, import_hdf5
from pipeline.store.join import Coverage
from pipeline.store.join import join as join_logits
from pipeline.store.location import Place
from pipeline.store.logits_files import Activation, NpyLogits, TopKHdf5Logits
from pipeline.store.merge import merge as merge_stores
from pipeline.store.schema import CLIPS_FILE
from stages.locations import place_of

HDF5_SUFFIXES = (".h5", ".hdf", ".hdf5")


def merge(*, stores: Sequence[str], out: str, console: Console) -> None:
    """Merge stores and say what became of it."""
    found = merge_stores([place_of(store) for store in stores], place_of(out))
    what = "shards of one plan" if found.how == "shards" else "plans laid end to end"
    console.print(f"merge: {what}: {found.rows} rows, {found.copied} shards written")
    if found.dropped:
        console.print(f"merge: {found.dropped} windows that an earlier store holds too were left out")
    if found.pending:
        console.print(
            f"merge: {found.pending} shards are in none of them; merge again with more stores, or ossicle embed"
            f" into {out}"
        )
    else:
        console.print(f"merge: finished in {out}; distill takes it by --set paths.store={out}", markup=False)


def join(
    *,
    place: Place,
    file: Path,
    names: Path | None,
    teacher: str,
    ids: str,
    activation: str | None,
    classes: int,
    dtype: str,
    licence: str,
    citation: str,
    console: Console,
) -> None:
    """Join a logits file and print which rows it covers."""
    for key, value, known in (
        ("--activation", activation or "logits", get_args(Activation)),
        ("--dtype", dtype, ("float16", "float32")),
    ):
        if value not in known:
            raise ConfigError(f"{key} {value!r} is unknown", expected=", ".join(known), got=value)
    read_marker(place, run="ossicle embed")
    kept: Any = activation
    source: NpyLogits | TopKHdf5Logits
    if file.suffix.lower() in HDF5_SUFFIXES:
        source = TopKHdf5Logits(file, names, kept or "sigmoid", classes)
    elif names is None:
        raise ConfigError(
            f"{file} does not say which row is which clip",
            expected="--names FILE: .csv, .json or .npz of the clips' names in its order",
            got="no --names",
        )
    else:
        source = NpyLogits(file, names, kept or "logits")
    rows = tables.load(place, CLIPS_FILE)
    stored: Any = dtype
    found = join_logits(
        place, source, _ids(rows, ids), teacher, dtype=stored, licence=licence, citation=citation
    )
    if source.note:
        console.print(f"join: {source.note}")
    _print_coverage(found, teacher, console)


def _ids(rows: pandas.DataFrame, ids: str) -> list[str]:
    """Return one id a row: a column of the store, or what a CSV gives for the row's clip_id."""
    if ids in rows.columns:
        return [str(one) for one in rows[ids]]
    path = Path(ids)
    if not path.is_file():
        text = [column for column in rows.columns if not pandas.api.types.is_numeric_dtype(rows[column])]
        raise StoreError(
            f"--ids {ids}: no such column, and no such file",
            expected=f"a CSV of clip_id,id, or one of {', '.join(text)}",
            got=ids,
        )
    table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    if not {"clip_id", "id"} <= set(table.columns):
        raise StoreError(f"{path} has other columns", expected="clip_id,id", got=",".join(table.columns))
    if table["clip_id"].duplicated().any():
        twice = table["clip_id"][table["clip_id"].duplicated()].iloc[0]
        raise StoreError(f"{path} lists a clip twice", expected="each clip_id once", got=twice)
    return [
        str(one)
        for one in rows["clip_id"].map(dict(zip(table["clip_id"], table["id"], strict=True))).fillna("")
    ]


def _print_coverage(found: Coverage, teacher: str, console: Console) -> None:
    table = Table("split", "rows", "covered", "share")
    for split, (covered, rows) in [*found.by_split.items(), ("all", (found.covered, found.rows))]:
        table.add_row(split, str(rows), str(covered), f"{covered / max(rows, 1):.1%}")
    console.print(table)
    console.print(
        f"join: {found.clips_used} of the file's {found.clips_in_file} clips are in the store; "
        f"{found.unusable} rows have logits that cannot be used; {found.views} rows of other views have none"
    )
    if found.uncovered_ids:
        console.print(f"join: not in the file: {', '.join(found.uncovered_ids)} ...", markup=False)
    console.print(f"join: {found.array}; stage 2 reads it as {teacher}:logits", markup=False)


def export_file(*, place: Place, file: Path, console: Console) -> None:
    """Write a store to an HDF5 file."""
    size = export_hdf5(place, file)
    console.print(f"export-hdf5: {place} to {file}, {size / 1e6:.1f} MB")


def import_file(*, file: Path, out: str, console: Console) -> None:
    """Make a store of an HDF5 file."""
    found = import_hdf5(file, place_of(out))
    console.print(f"import-hdf5: {found.summary['rows']} rows, sound; in {out}")
