"""The store's parquet tables: one way to write them, so that equal content is equal bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet

from pipeline.errors import MissingArtifactError, StoreError
from pipeline.store.location import Location, Place, at
from pipeline.store.schema import NO_ROW, REJECT_COLUMNS

# Names to values, one mapping a reject, or the same as a table.
Rejects = pandas.DataFrame | Iterable[Mapping[str, Any]] | None


def to_bytes(frame: pandas.DataFrame) -> bytes:
    """Return ``frame`` as the bytes of a parquet file."""
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd", version="2.6")
    return bytes(sink.getvalue().to_pybytes())


def round_trip(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return ``frame`` as it will be read back: digests must not see the difference between None and NaN."""
    restored: pandas.DataFrame = pyarrow.parquet.read_table(pyarrow.BufferReader(to_bytes(frame))).to_pandas()
    return restored


def read(path: Path) -> pandas.DataFrame:
    """Return the table in the file ``path``; see ``load``."""
    return load(path.parent, path.name)


def load(place: Place | Location, name: str) -> pandas.DataFrame:
    """Return the table ``name`` of the store at ``place``.

    Raises:
        MissingArtifactError: there is none.
        StoreError: it is no parquet file.
    """
    location = at(place)
    try:
        content = location.read(name)
    except FileNotFoundError:
        raise MissingArtifactError(f"{location}/{name} is missing", run="ossicle embed") from None
    return parse(content, f"{location}/{name}")


def parse(content: bytes, where: str) -> pandas.DataFrame:
    """Return the table that ``content`` is; ``where`` is for messages.

    Raises:
        StoreError: it is no parquet file.
    """
    try:
        frame: pandas.DataFrame = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pandas()
    except (pyarrow.ArrowException, OSError) as error:
        raise StoreError(
            f"{where} cannot be read: {error}",
            run="move the store away and run ossicle embed again",
        ) from error
    return frame


def rejects_table(rejects: Rejects) -> pandas.DataFrame:
    """Return exactly the columns of ``rejects.parquet``: absent text is "", an absent row -1.

    Bytes of a file name that are not UTF-8 are written as ``\\xff``.
    """
    records: Iterable[Mapping[Any, Any]] = (
        rejects.to_dict("records") if isinstance(rejects, pandas.DataFrame) else rejects or ()
    )
    # Cleaned before pandas sees them: it cannot even hold the lone surrogates of such a name.
    cleaned = [{name: _cleaned(name, record.get(name)) for name in REJECT_COLUMNS} for record in records]
    table = pandas.DataFrame(cleaned, columns=list(REJECT_COLUMNS))
    return table.astype({name: "int64" if name == "row" else "str" for name in REJECT_COLUMNS})


def merge_rejects(earlier: Rejects, found: Rejects) -> pandas.DataFrame:
    """Return rejects without a row of ``earlier`` and all of ``found``, once each, in one order."""
    kept = rejects_table(earlier)
    merged = pandas.concat([kept[kept["row"] == NO_ROW], rejects_table(found)], ignore_index=True)
    return (
        merged.drop_duplicates()
        .sort_values(["row", *[c for c in REJECT_COLUMNS if c != "row"]])
        .reset_index(drop=True)
    )


def _cleaned(name: str, value: Any) -> int | str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if name == "row":
        return NO_ROW if missing else int(value)
    return (
        "" if missing else str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )
