"""Further tables beside ``benchmark.json``: what another stage measured, counted or estimated of the same exports.

A stage writes its own file ``table-<name>.json`` into the benchmark's folder (``write``); the benchmark and the report
show every one under its title and its kind, so that an estimate is never read as a measurement.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline import artifact
from pipeline.errors import MeasurementError
from pipeline.section import Section


class Column(Section):
    """One column: ``key`` of each row, its heading (with the unit), and decimals; None leaves text as it is."""

    key: str
    heading: str
    decimals: int | None = None


class ExtraTable(Section):
    """Rows of figures that ``ossicle benchmark`` does not make itself.

    A row may say ``export_digest``; when that export is no longer the recipe's, the row is left out.
    """

    schema_version: Literal["ossicle-benchmark-table/1"] = "ossicle-benchmark-table/1"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str = Field(description="what the rows are, e.g. Ethos-U55-128 by Vela 5.2")
    kind: Literal["estimate", "count", "measured"] = Field(description="what sort of figures these are")
    note: str = Field("", description="one sentence on how they were made")
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[dict[str, Any], ...] = ()
    run: str = Field("", description="the command that makes them anew")


def write(folder: Path, table: ExtraTable) -> Path:
    """Write ``table`` into a benchmark's folder and return its file; an older one of its name is replaced."""
    path = folder / f"table-{table.name}.json"
    artifact.write_json(path, table.model_dump(mode="json"))
    return path


def read(folder: Path, exports: Collection[str] | None = None) -> tuple[list[ExtraTable], list[str]]:
    """Return the tables in ``folder`` by name, and a note for each whose rows are of exports no longer in use.

    Args:
        folder: a benchmark's folder.
        exports: digests of the exports that are shown; None = all rows are.

    Raises:
        MeasurementError: a file is no such table.
    """
    tables, notes = [], []
    for path in sorted(folder.glob("table-*.json")):
        try:
            table = ExtraTable.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
            raise MeasurementError(
                f"{path} is no table of figures", expected="what ossicle wrote", got=str(error).splitlines()[0],
                run=f"remove {path}, then the command that made it",
            ) from error  # fmt: skip
        rows = tuple(
            row for row in table.rows if exports is None or row.get("export_digest") in (None, *exports)
        )
        if len(rows) < len(table.rows):
            anew = f"; anew: {table.run}" if table.run else ""
            notes.append(f"{table.title}: {len(table.rows) - len(rows)} rows of older exports left out{anew}")
        if rows:
            tables.append(table.model_copy(update={"rows": rows}))
    return tables, notes


def cells(table: ExtraTable, row: dict[str, Any]) -> list[str]:
    """Return a row's texts in the order of the columns; what is absent is a dash."""
    return [_cell(row.get(column.key), column.decimals) for column in table.columns]


def _cell(value: Any, decimals: int | None) -> str:
    if value is None:
        return "-"
    if decimals is None or isinstance(value, (str, bool)):
        return str(value)
    return f"{value:,.{decimals}f}"
