"""Numbers that papers print, from ``data_manifests/published.csv``: never ours, never reproduced by being listed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

FILE = "published.csv"
SCALES = {"%": 1.0, "fraction": 100.0}


@dataclass(frozen=True)
class Published:
    """One number of one paper.

    Attributes:
        system, model, teacher, parameters_millions: what was measured; empty where it is not said.
        dataset, task: its dataset, and our task of the same rows and metric (empty: none).
        metric, probe: ``knn`` and ``linear`` as ours; ``trained``: the whole network.
        value, unit: as printed; ``%`` or ``fraction``.
        citation, link, location, note: where it is printed.
        licence: of the row; a number is a fact, and its source is cited.
    """

    system: str
    model: str
    teacher: str
    parameters_millions: str
    dataset: str
    task: str
    metric: str
    probe: str
    value: float
    unit: str
    citation: str
    link: str
    location: str
    note: str
    licence: str

    @property
    def percent(self) -> float:
        """The value in per cent, or in hundredths of a correlation."""
        return self.value * SCALES[self.unit]


def read(folder: Path) -> list[Published]:
    """Return every row of ``published.csv`` in ``folder``.

    Raises:
        ConfigError: a column is missing, a value is no number, a unit is unknown, or a row says not where it stands.
    """
    path = folder / FILE
    names = [field.name for field in fields(Published)]
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != names:
            raise ConfigError(
                f"{path} has other columns", expected=", ".join(names), got=", ".join(reader.fieldnames or ())
            )
        return [_checked(row, path, line) for line, row in enumerate(reader, start=2)]


def comparable(papers: Sequence[Published], scores: Mapping[str, Any]) -> list[Published]:
    """Return the rows that may stand beside these scores: none of a task whose sound is a look-alike's."""
    ours = {task["name"] for task in scores.get("tasks", []) if task.get("look_alike")}
    return [row for row in papers if row.task not in ours]


def _checked(row: dict[str, str], path: Path, line: int) -> Published:
    try:
        value = float(row["value"])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}, line {line}: no number", expected="a value", got=row["value"]) from error
    if row["unit"] not in SCALES:
        raise ConfigError(f"{path}, line {line}: unit", expected=", ".join(SCALES), got=row["unit"])
    for needed in ("model", "dataset", "metric", "citation", "location"):
        if not row[needed]:
            raise ConfigError(f"{path}, line {line}: {needed} is empty", expected="where the number stands")
    words = {name: row[name] for name in row if name != "value"}
    return Published(value=value, **words)
