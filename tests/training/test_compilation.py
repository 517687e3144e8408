"""``train.compile``: the same numbers, the same parameters, and no compilation where it cannot pay."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError
from pipeline.training.loop import fit
from pipeline.training.state import TrainingState
from tests.training.numbered_batches import ROWS, BatchNormStudent, NumberedLoader, SquaredErrors


class _Warming(BatchNormStudent):
    def at_step(self, step: int, steps: int) -> None:
        self.temperature = float(steps - step)


def _trained(folder: Path, student: type[nn.Module] = BatchNormStudent, **keys: Any) -> TrainingState:
    torch.manual_seed(0)
    config = TrainConfig(steps=6, warmup_steps=1, amp="off", validate_every=2, batch_size=ROWS, **keys)
    state = TrainingState(student(), SquaredErrors(), config, "w" * 64)
    fit(state, NumberedLoader(), folder, augment=lambda log_mel, generator: log_mel, validate=dict)
    return state


def test_a_compiled_student_is_the_same_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and run by torch's eager backend: what is tested is that we train the weights that we save."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for name in ("plain", "compiled"):
        (tmp_path / name).mkdir()
    plain = _trained(tmp_path / "plain", compile="off")
    compiled = _trained(tmp_path / "compiled", compile="on")
    assert (plain.compiled, compiled.compiled) == (False, True)
    assert compiled.forward is not compiled.student
    ours, theirs = compiled.model.state_dict(), plain.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=name)


def test_on_the_cpu_auto_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", refused)
    assert _trained(tmp_path).compiled is False


def test_a_student_that_changes_with_the_step_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compiled anew"):
        _trained(tmp_path, _Warming, compile="on")
