"""``metrics.jsonl`` across kills: cut to the checkpoint, half lines gone, always whole JSON."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, MissingDependencyError
from pipeline.training.metrics import FILE, MetricsLog, read_metrics


def _fill(folder: Path, *steps: int) -> None:
    log = MetricsLog(folder, -1)
    for step in steps:
        log.append({"step": step, "loss": step / 2})
    log.close()


def test_resume_drops_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    _fill(tmp_path, 10, 20, 30, 40)
    log = MetricsLog(tmp_path, 20)
    log.append({"step": 30, "loss": 9.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(10, 5.0), (20, 10.0), (30, 9.0)]


def test_half_a_last_line_is_forgotten(tmp_path: Path) -> None:
    _fill(tmp_path, 10, 20)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 30, "lo')
    assert [r["step"] for r in read_metrics(tmp_path)] == [10, 20]
    MetricsLog(tmp_path, 100).append({"step": 40})
    lines = (tmp_path / FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 40]


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    MetricsLog(tmp_path, -1).append({"step": 1, "gradient_norm": float("inf"), "loss": 1.0})
    assert "Infinity" not in (tmp_path / FILE).read_text()
    assert read_metrics(tmp_path) == [{"step": 1, "gradient_norm": None, "loss": 1.0}]


def test_tensorboard_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError) as raised:
        MetricsLog(tmp_path, -1, TrainConfig(tensorboard=True))
    assert "ossicle[tensorboard]" in str(raised.value)


def test_tensorboard_events_hold_the_same_numbers(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path, -1, TrainConfig(tensorboard=True))
    for step in (10, 20):
        log.append({"step": step, "loss": step / 2, "gradient_norm": float("inf")})
    log.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 5.0), (20, 10.0)]


def test_mlflow_has_the_run_its_keys_and_its_numbers_and_goes_on_with_it(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = TrainConfig(mlflow=uri, steps=123)
    folder = tmp_path / "run"
    told = {"student.name": "cnn4", **{f"loss.term{i}": "x" * 600 for i in range(120)}}
    for resume, steps in ((-1, (10, 20)), (20, (30,))):
        log = MetricsLog(folder, resume, config, run_name="taught-seed0", parameters=told)
        for step in steps:
            log.append({"step": step, "loss": step / 2, "gradient_norm": float("nan")})
        log.close()
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("ossicle").experiment_id])
    assert (run.info.run_name, run.info.status) == ("taught-seed0", "FINISHED")
    assert run.data.params == {"student.name": "cnn4", **{f"loss.term{i}": "x" * 500 for i in range(120)}}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(10, 5.0), (20, 10.0), (30, 15.0)]
    assert json.loads((folder / "mlflow.json").read_text())["run_id"] == run.info.run_id


def test_an_mlflow_address_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(ConfigError, match=r"train\.mlflow cannot be used"):
        MetricsLog(tmp_path, -1, TrainConfig(mlflow="nosuchscheme://x"))


def test_mlflow_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "mlflow":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError) as raised:
        MetricsLog(tmp_path, -1, TrainConfig(mlflow="sqlite:///x.db"))
    assert "ossicle[mlflow]" in str(raised.value)


def test_a_silent_log_writes_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, -1, TrainConfig(mlflow="sqlite:///nowhere/x.db"), silent=True)
    log.append({"step": 1, "loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())
