"""``metrics.jsonl`` across kills: cut to the checkpoint, half lines gone, always whole JSON."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import TrainConfig
from pipeline.errors import MissingDependencyError
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
