"""The store's parquet tables: one way to write them, so that equal content is equal bytes."""

from __future__ import annotations

from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet

from pipeline.errors import MissingArtifactError, StoreError
from pipeline.store.schema import NO_ROW, REJECT_COLUMNS


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
    """Return the table at ``path``.

    Raises:
        MissingArtifactError: there is none.
        StoreError: it is no parquet file.
    """
    if not path.is_file():
        raise MissingArtifactError(f"{path} is missing", run="ossicle embed")
    try:
        # Through a handle: pyarrow maps files given by name, and a damaged one can then fail late.
        with path.open("rb") as file:
            frame: pandas.DataFrame = pyarrow.parquet.read_table(file).to_pandas()
    except (pyarrow.ArrowException, OSError) as error:
        raise StoreError(
            f"{path} cannot be read: {error}", run="move the store away and run ossicle embed again"
        ) from error
    return frame


def rejects_table(frame: pandas.DataFrame | None) -> pandas.DataFrame:
    """Return ``frame`` with exactly the columns of ``rejects.parquet``; absent text is "", absent rows -1."""
    given = pandas.DataFrame() if frame is None else frame
    columns: dict[str, pandas.Series] = {}
    for name in REJECT_COLUMNS:
        if name == "row":
            values = given.get(name, pandas.Series([NO_ROW] * len(given), index=given.index))
            columns[name] = values.fillna(NO_ROW).astype("int64")
        else:
            values = given.get(name, pandas.Series([""] * len(given), index=given.index))
            columns[name] = values.astype(object).where(values.notna(), "").map(_printable).astype("str")
    return pandas.DataFrame(columns).reset_index(drop=True)


def merge_rejects(earlier: pandas.DataFrame, found: pandas.DataFrame) -> pandas.DataFrame:
    """Return rejects without a row of ``earlier`` and all of ``found``, once each, in one order."""
    kept = rejects_table(earlier)
    merged = pandas.concat([kept[kept["row"] == NO_ROW], rejects_table(found)], ignore_index=True)
    return (
        merged.drop_duplicates()
        .sort_values(["row", *[c for c in REJECT_COLUMNS if c != "row"]])
        .reset_index(drop=True)
    )


def _printable(text: object) -> str:
    # File names that are not UTF-8 carry lone surrogates, which no parquet string may hold.
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
