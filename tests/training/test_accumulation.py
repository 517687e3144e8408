"""Micro-batches against the whole batch: the loss and every gradient, pairs across micro-batches included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.data.loader import Batch
from pipeline.losses.distance_wise import distance_wise
from pipeline.training.state import TrainingState
from pipeline.training.step import update

ROWS, MELS, FRAMES, DIM = 14, 6, 8, 5


class _Student(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(8, DIM)

    def forward(self, log_mel: Tensor) -> Tensor:
        embedding: Tensor = self.out(self.dropout(torch.relu(self.norm(self.conv(log_mel))).mean(dim=(2, 3))))
        return embedding


class _Relations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(DIM, DIM)

    def forward(self, embedding: Tensor, index: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert len(embedding) == len(index) == len(teacher) == ROWS
        loss = distance_wise(self.head(embedding), teacher)
        return loss, {"distance": loss}


def _made(dropout: float = 0.0) -> tuple[_Student, _Relations]:
    """Return the same networks each time, with torch's global generator in the same state."""
    torch.manual_seed(3)
    student, objective = _Student(dropout), _Relations()
    student.norm.running_mean.uniform_(-1, 1)
    student.norm.running_var.uniform_(0.5, 2)
    return student, objective


def _rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    log_mel = torch.randn(ROWS, MELS, FRAMES, generator=generator).half()
    return log_mel, torch.randn(ROWS, DIM, generator=generator)


def _stepped(
    folder: Path, micro: int | None, dropout: float = 0.0, **keys: Any
) -> tuple[TrainingState, float]:
    student, objective = _made(dropout)
    config = TrainConfig(
        batch_size=ROWS, micro_batch_size=micro, optimiser="sgd", clip_norm=None, amp="off", steps=5,
        warmup_steps=0, learning_rate=0.5, **keys,
    )  # fmt: skip
    state = TrainingState(student, objective, config, "")
    state.prepare()
    values = update(state, Batch(torch.arange(ROWS), *_rows()), lambda log_mel, _: log_mel, folder)
    assert values is not None
    return state, values["loss"]


@pytest.mark.parametrize("micro", [1, 4, 7])
def test_frozen_statistics_make_accumulation_exact(tmp_path: Path, micro: int) -> None:
    whole, loss = _stepped(tmp_path, None, batch_norm="frozen")
    parts, same = _stepped(tmp_path, micro, batch_norm="frozen")
    assert same == pytest.approx(loss, abs=1e-6)
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert whole.model.state_dict().keys() == parts.model.state_dict().keys()
    for name, value in whole.model.named_buffers():
        assert torch.equal(dict(parts.model.named_buffers())[name], value), name


def test_a_batch_norm_normalises_each_micro_batch_and_notes_it_once(tmp_path: Path) -> None:
    """The loss of literally normalised halves, and running statistics after two updates, not four."""
    state, loss = _stepped(tmp_path, ROWS // 2)
    student, objective = _made()
    log_mel, teacher = _rows()
    halves = torch.cat([student(half.unsqueeze(1)) for half in log_mel.float().split(ROWS // 2)])
    want, _ = objective(halves, torch.arange(ROWS), teacher)
    assert loss == pytest.approx(float(want.detach()), abs=1e-6)
    got = state.student.norm
    assert int(got.num_batches_tracked) == 2
    torch.testing.assert_close(got.running_mean, student.norm.running_mean)
    torch.testing.assert_close(got.running_var, student.norm.running_var)


def test_dropout_draws_the_same_masks_in_both_passes(tmp_path: Path) -> None:
    """With masks drawn anew the surrogate's gradient would be that of other embeddings than the loss saw."""
    state, loss = _stepped(tmp_path, 5, dropout=0.5, batch_norm="frozen")
    student, objective = _made(0.5)
    student.norm.eval()
    log_mel, teacher = _rows()
    embedding = torch.cat([student(part.unsqueeze(1)) for part in log_mel.float().split(5)])
    want, _ = objective(embedding, torch.arange(ROWS), teacher)
    want.backward()
    assert loss == pytest.approx(float(want.detach()), abs=1e-6)
    for (name, a), b in zip(state.student.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_frozen_backbone_trains_its_head_alone(tmp_path: Path) -> None:
    state, _ = _stepped(tmp_path, None, frozen_backbone=True, dropout=0.5)
    before, objective = _made(0.5)
    for name, value in before.state_dict().items():
        assert torch.equal(state.student.state_dict()[name], value), name
    assert not torch.equal(state.model["objective"].head.weight, objective.head.weight)
    assert not state.student.training
