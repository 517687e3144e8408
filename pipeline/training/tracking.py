"""Trackers beside ``metrics.jsonl``: TensorBoard event files and MLflow, both on this machine unless told otherwise."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.artifact import write_json
from pipeline.errors import ConfigError, MissingDependencyError

log = logging.getLogger(__name__)

MLFLOW_FILE = "mlflow.json"
EXPERIMENT = "ossicle"
# What one request of MLflow takes.
MOST_PARAMETERS, LONGEST_PARAMETER = 100, 500


class Tracker(Protocol):
    """Is told of every record of metrics."""

    def note(self, step: int, numbers: dict[str, float]) -> None:
        """Take the numbers of a step."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class TensorBoardTracker:
    """Event files under ``tensorboard/`` of the run's folder; events after ``resume_step`` are purged."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "train.tensorboard is on and TensorBoard is not installed",
                run="pip install 'ossicle[tensorboard]'",
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def note(self, step: int, numbers: dict[str, float]) -> None:
        """Write one scalar a number."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the file."""
        self._writer.close()


class MlflowTracker:
    """A run of the experiment ``ossicle`` at ``train.mlflow``; ``mlflow.json`` holds its id, for going on.

    A run that goes on sends the steps after its checkpoint again: the same numbers for the same steps.
    """

    def __init__(self, folder: Path, uri: str, name: str, parameters: Mapping[str, str]) -> None:
        try:
            # Its own telemetry is off: training tells nobody but the address that the recipe names.
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            import mlflow
            from mlflow.entities import Metric, Param
        except ImportError as error:
            raise MissingDependencyError(
                "train.mlflow is given and MLflow is not installed", run="pip install 'ossicle[mlflow]'"
            ) from error
        self._metric, self._error, self._lost = Metric, mlflow.MlflowException, False
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            known = _known_run(self._client, folder / MLFLOW_FILE, uri)
            if known is None:
                found = self._client.get_experiment_by_name(EXPERIMENT)
                experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
                known = str(self._client.create_run(experiment, run_name=name).info.run_id)
                told = [Param(key, value[:LONGEST_PARAMETER]) for key, value in sorted(parameters.items())]
                for start in range(0, len(told), MOST_PARAMETERS):
                    self._client.log_batch(known, params=told[start : start + MOST_PARAMETERS])
                write_json(folder / MLFLOW_FILE, {"tracking_uri": uri, "run_id": known})
            self._id = known
        except mlflow.MlflowException as error:
            raise ConfigError(
                f"train.mlflow cannot be used: {uri}",
                expected="sqlite:///FILE, or the address of a running MLflow server",
                got=str(error).splitlines()[0], run="--set train.mlflow=null",
            ) from error  # fmt: skip

    def note(self, step: int, numbers: dict[str, float]) -> None:
        """Send one metric a number. Where that fails, training goes on without MLflow and a warning says so."""
        if self._lost:
            return
        now = round(time.time() * 1000)
        made = [
            self._metric(name, value, now, step) for name, value in numbers.items() if math.isfinite(value)
        ]
        try:
            self._client.log_batch(self._id, metrics=made)
        except (self._error, OSError) as error:
            self._lost = True
            log.warning("MLflow is not told any more from step %d on: %s", step, str(error).splitlines()[0])

    def close(self) -> None:
        """Mark the run as ended; one that goes on is opened again by its id."""
        if self._lost:
            return
        try:
            self._client.set_terminated(self._id)
        except (self._error, OSError) as error:
            log.warning("MLflow was not told of the end: %s", str(error).splitlines()[0])


def _known_run(client: Any, path: Path, uri: str) -> str | None:
    """Return the id of the run that this folder has at ``uri``, or None."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("tracking_uri") != uri:
        return None
    run_id: str = found["run_id"]
    client.update_run(run_id, status="RUNNING")
    return run_id
