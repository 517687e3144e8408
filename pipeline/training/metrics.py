"""``metrics.jsonl``: one flat JSON object a line, appended whole, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from pipeline.artifact import write_bytes
from pipeline.errors import MissingDependencyError

FILE = "metrics.jsonl"


class MetricsLog:
    """Append-only log of a run, and TensorBoard beside it where asked.

    Args:
        folder: the run's folder.
        resume_step: lines of later steps are dropped; they will be made again.
        tensorboard: also write event files under ``tensorboard/``.

    Raises:
        MissingDependencyError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, resume_step: int, tensorboard: bool = False) -> None:
        self.path = folder / FILE
        write_bytes(self.path, "".join(_line(r) for r in _kept(self.path, resume_step)).encode())
        self._writer = _tensorboard(folder / "tensorboard", resume_step) if tensorboard else None

    def append(self, record: dict[str, Any]) -> None:
        """Write one record, which has a ``step``. A number that is not finite is written as null."""
        with self.path.open("ab", buffering=0) as file:
            file.write(_line(record).encode())
        if self._writer is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Sync to disk."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
        if self._writer is not None:
            self._writer.close()


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


def _tensorboard(folder: Path, resume_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "train.tensorboard is on and TensorBoard is not installed",
            run="pip install 'ossicle[tensorboard]'",
        ) from error
    return SummaryWriter(str(folder), purge_step=resume_step + 1)
