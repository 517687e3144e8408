"""Batches whose numbers are not finite: written down whole, skipped where that is asked for, and never learnt."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.errors import TrainingError
from pipeline.training.loop import fit
from pipeline.training.metrics import read_metrics
from pipeline.training.state import TrainingState
from tests.training.numbered_batches import DIM, ROWS, BatchNormStudent, NumberedLoader


class _Bad(nn.Module):
    """Squares of the embedding against the teacher; at some steps times NaN, or with an infinite slope at 0."""

    def __init__(self, *, losses: tuple[int, ...] = (), slopes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.head = nn.Linear(DIM, DIM)
        self.losses, self.slopes, self.now = losses, slopes, 0
        self.register_buffer("memory", torch.zeros(DIM))

    def at_step(self, step: int, steps: int) -> None:
        self.now = step

    def forward(self, embedding: Tensor, index: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.head(embedding) - teacher).square().mean()
        self.memory.copy_(embedding.detach().mean(dim=0) * (float("nan") if self.now in self.losses else 1))
        if self.now in self.losses:
            loss = loss * float("nan")
        if self.now in self.slopes:
            loss = loss + (embedding * 0).square().sum().sqrt()
        return loss, {"squares": loss}


def _state(objective: nn.Module, **changes: Any) -> TrainingState:
    torch.manual_seed(0)
    keys = {"steps": 8, "warmup_steps": 2, "amp": "off", "validate_every": 4, "batch_size": ROWS, **changes}
    return TrainingState(BatchNormStudent(), objective, TrainConfig(**keys), "w" * 64)


def _fit(state: TrainingState, folder: Path, loader: Any = None) -> None:
    folder.mkdir(exist_ok=True)
    fit(
        state, loader or NumberedLoader(), folder, augment=lambda log_mel, generator: 2 * log_mel, validate=dict
    )  # fmt: skip


def _open(folder: Path, step: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(str(folder / f"bad_batch_step{step}.safetensors"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_the_file_holds_what_makes_the_step_again(tmp_path: Path) -> None:
    state = _state(_Bad(losses=(5,)))
    with pytest.raises(TrainingError, match="loss is not finite at step 5") as raised:
        _fit(state, tmp_path)
    assert str(tmp_path / "bad_batch_step5.safetensors") in str(raised.value)
    found, header = _open(tmp_path, 5)
    batch = NumberedLoader.numbered(5)
    assert torch.equal(found["index"], batch.index)
    assert torch.equal(found["spectrogram"], batch.spectrogram)
    assert torch.equal(found["embedding"], batch.embedding)
    assert torch.equal(found["log_mel"], 2 * batch.spectrogram.float())
    assert {"step": header["step"], "what": header["what"]} == {"step": "5", "what": "loss"}
    assert json.loads(header["values"])["loss"] == "nan"
    for name, value in state.model.state_dict().items():
        torch.testing.assert_close(found[f"model.{name}"], value, equal_nan=True, rtol=0, atol=0)
    assert {name.split(".")[0] for name in found} >= {"model", "optimiser", "rng"}


@pytest.mark.parametrize("kind", ["losses", "slopes"])
def test_skipped_batches_leave_no_trace(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Weights, batch-norm statistics, the objective's memory and the optimiser equal a run that never saw them."""
    bad = (2, 5)
    skipping = _state(_Bad(**{kind: bad}), bad_batches=2, schedule="constant", warmup_steps=0)
    with caplog.at_level(logging.WARNING):
        _fit(skipping, tmp_path / "skipping")
    clean = _state(_Bad(), steps=6, schedule="constant", warmup_steps=0)

    class Without(NumberedLoader):
        def __iter__(self) -> Any:
            return (batch for number, batch in enumerate(super().__iter__()) if number not in bad)

    _fit(clean, tmp_path / "clean", Without())
    for (name, ours), theirs in zip(
        skipping.model.state_dict().items(), clean.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert skipping.skipped == 2
    assert caplog.text.count("skipped") >= 2
    assert all((tmp_path / "skipping" / f"bad_batch_step{step}.safetensors").is_file() for step in bad)
    last = [record for record in read_metrics(tmp_path / "skipping") if "loss" in record][-1]
    assert last["skipped_batches"] == 2
    assert last["loss"] is not None


def test_more_than_allowed_fail_and_the_count_survives_a_resume(tmp_path: Path) -> None:
    def state() -> TrainingState:
        return _state(_Bad(losses=(1, 3, 6)), bad_batches=2, steps=12)

    first = state()
    with pytest.raises(TrainingError, match="step 6, after 2 skipped"):
        _fit(first, tmp_path)
    again = state()
    assert again.restore(tmp_path) is not None
    assert (again.step, again.skipped) == (4, 2)
