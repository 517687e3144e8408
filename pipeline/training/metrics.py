"""``metrics.jsonl``: one flat JSON object a line, appended whole, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifact import write_bytes
from pipeline.config import TrainConfig
from pipeline.training.tracking import MlflowTracker, TensorBoardTracker, Tracker

FILE = "metrics.jsonl"


class MetricsLog:
    """Append-only log of a run, and the trackers that the recipe asks for beside it.

    Args:
        folder: the run's folder.
        resume_step: lines of later steps are dropped; they will be made again.
        config: ``tensorboard`` and ``mlflow``; default neither.
        run_name: how MLflow calls the run; parameters: what it says of it, default ``[train]``.
        silent: write nothing at all, for processes that are not the first.

    Raises:
        MissingDependencyError: a tracker is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int,
        config: TrainConfig | None = None,
        *,
        run_name: str = "",
        parameters: Mapping[str, str] | None = None,
        silent: bool = False,
    ) -> None:
        self.path, self.silent = folder / FILE, silent
        self._trackers: list[Tracker] = []
        if silent:
            return
        write_bytes(self.path, "".join(_line(r) for r in _kept(self.path, resume_step)).encode())
        if config is not None and config.tensorboard:
            self._trackers.append(TensorBoardTracker(folder, resume_step))
        if config is not None and config.mlflow is not None:
            told = parameters or {key: str(value) for key, value in config.counted().items()}
            self._trackers.append(MlflowTracker(folder, config.mlflow, run_name or folder.name, told))

    def append(self, record: dict[str, Any]) -> None:
        """Write one record, which has a ``step``. A number that is not finite is written as null."""
        if self.silent:
            return
        with self.path.open("ab", buffering=0) as file:
            file.write(_line(record).encode())
        numbers = {
            name: float(value)
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float)
        }
        for tracker in self._trackers:
            tracker.note(record["step"], numbers)

    def close(self) -> None:
        """Sync to disk."""
        if self.silent:
            return
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
        for tracker in self._trackers:
            tracker.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return every whole record of a run, in order."""
    return _kept(folder / FILE, None)


def _line(record: dict[str, Any]) -> str:
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


def _kept(path: Path, last_step: int | None) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # A killed process may leave half a last line; what is whole ends in a newline.
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    records = [json.loads(line) for line in whole]
    return [r for r in records if last_step is None or r["step"] <= last_step]
