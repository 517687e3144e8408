"""The trials of a study as a table, and as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline import artifact
from pipeline.search import study as studies

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TABLE = "trials.parquet"


def outcome_of(trial: FrozenTrial) -> str:
    """Return ``done``, ``pruned``, ``refused``, ``failed``, ``lost`` (its process ended), ``running`` or ``queued``."""
    if studies.REFUSED in trial.user_attrs:
        return "refused"
    if trial.state.name == "FAIL":
        return "failed" if studies.ERROR in trial.user_attrs else "lost"
    return {"COMPLETE": "done", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "queued"}[
        trial.state.name
    ]


def table(trials: Sequence[FrozenTrial], names: Sequence[str]) -> pd.DataFrame:
    """Return one row a trial.

    Columns: ``trial``, ``outcome``, the objectives' ``names`` (of a pruned trial the last one seen), ``steps``,
    ``seconds``, ``reused_from``, ``requeued_from``, ``folder``, ``reason``, and one column a key of the space.

    Args:
        trials: of the study, in order.
        names: of its objectives.
    """
    rows: list[dict[str, Any]] = []
    for trial in trials:
        attributes = trial.user_attrs
        if outcome_of(trial) == "lost" and studies.WORK not in attributes:
            continue  # one too many, or its process ended before it was anything
        row: dict[str, Any] = {"trial": trial.number, "outcome": outcome_of(trial)}
        values = trial.values if trial.values is not None else [None] * len(names)
        row |= {
            name: float("nan") if value is None else value for name, value in zip(names, values, strict=False)
        }
        row["steps"] = attributes.get(studies.STEPS, max(trial.intermediate_values, default=None))
        for name in (studies.SECONDS, studies.REUSED, studies.REQUEUED, studies.FOLDER):
            row[name] = attributes.get(name)
        row["reason"] = attributes.get(studies.REFUSED) or attributes.get(studies.ERROR) or ""
        row |= trial.params
        rows.append(row)
    frame = pd.DataFrame(rows)
    for name in frame.columns:
        if frame[name].map(type).nunique() > 1 and frame[name].dtype == object:
            # A choice of several types; Parquet wants one a column.
            frame[name] = frame[name].map(lambda value: None if _absent(value) else _text(value))
    return frame


def write(folder: Path, frame: pd.DataFrame) -> None:
    """Write ``trials.parquet``, whole."""
    with artifact.replacing(folder / TABLE) as temporary:
        frame.to_parquet(temporary, index=False)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else json.dumps(value)
