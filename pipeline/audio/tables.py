"""Tables of strangers: CSV and Parquet read as text, with the columns wanted or a clear refusal."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import ManifestError, near_matches

MAX_PARQUET_BYTES = 4 << 30  # unpacked
MAX_FIELD_CHARACTERS = 1 << 20


def csv_rows(
    path: Path, required: Sequence[str], *, delimiter: str = ",", run: str | None = None
) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV with a header line, as text.

    Args:
        path: UTF-8, with or without a byte order mark.
        required: columns that must be there.
        delimiter: between columns.
        run: what to do where the file is missing.

    Raises:
        ManifestError: no such file, no header, a column missing, a row of another length, or no UTF-8.
    """
    for _, row in numbered_csv_rows(path, required, delimiter=delimiter, run=run):
        yield row


def numbered_csv_rows(
    path: Path, required: Sequence[str], *, delimiter: str = ",", run: str | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, row): ``csv_rows`` with the line that each row ends on."""
    if not path.is_file():
        raise ManifestError(f"{path} is not there", expected="a table with a header line", run=run)
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            require(names, required, str(path))
            for row in reader:
                if None in row or None in row.values():
                    raise ManifestError(
                        f"{path}, line {reader.line_num}: a row of another length",
                        expected=f"{len(names)} columns",
                    )
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8", got=error) from error
    except csv.Error as error:
        raise ManifestError(f"{path} is no CSV", got=error) from error


def parquet_rows(path: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (row number from 1, row) of a Parquet table, every value as text, missing ones as "".

    Raises:
        ManifestError: it is no Parquet, lacks a column, or unpacks to more than ``MAX_PARQUET_BYTES``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ManifestError(f"{path} is not there", expected="a Parquet table")
    try:
        with pq.ParquetFile(path) as table:
            names = [str(name) for name in table.schema_arrow.names]
            require(names, required, str(path))
            groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
            unpacked = sum(group.total_byte_size for group in groups)
            if unpacked > MAX_PARQUET_BYTES:
                raise ManifestError(
                    f"{path} would unpack to {unpacked} bytes", expected=f"at most {MAX_PARQUET_BYTES}"
                )
            number = 0
            for batch in table.iter_batches(batch_size=1 << 14):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {str(k): "" if v is None else str(v) for k, v in row.items()}
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path} is no Parquet table", got=" ".join(str(error).split())[:200]) from error


def require(names: Sequence[str], required: Sequence[str], where: str) -> None:
    """Raise ManifestError unless ``names`` holds every one of ``required``, each once."""
    missing = [name for name in required if name not in names]
    if missing:
        raise ManifestError(
            f"{where} lacks the column {missing[0]!r}", expected=near_matches(missing[0], names) if names else "",
            got=", ".join(names[:12]) or "no header",
        )  # fmt: skip
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ManifestError(f"{where} has a column twice", got=", ".join(twice[:3]))
