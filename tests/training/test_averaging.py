"""Averages of weights against literal ones, and what the averaged student's batch norms hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.training.loop import fit, recalibrate_average
from pipeline.training.state import TrainingState
from tests.training.numbered_batches import DIM, ROWS, BatchNormStudent, NumberedLoader, SquaredErrors


class _Squares(SquaredErrors):
    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.arange(9))
        self.register_buffer("memory", torch.zeros(DIM))

    def forward(self, embedding: Tensor, index: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.memory.copy_(embedding.detach()[0])
        return super().forward(embedding, index, teacher)


def _trained(folder: Path, **keys: Any) -> tuple[TrainingState, list[dict[str, Tensor]]]:
    """Train 10 steps; return the state and the live weights after each."""
    torch.manual_seed(0)
    config = TrainConfig(
        steps=10, warmup_steps=1, amp="off", validate_every=1, batch_size=ROWS, learning_rate=0.1,
        schedule="constant", **keys,
    )  # fmt: skip
    state = TrainingState(BatchNormStudent(), _Squares(), config, "w" * 64)
    seen: list[dict[str, Tensor]] = []

    def keep() -> dict[str, float]:
        seen.append({name: value.clone() for name, value in state.model.state_dict().items()})
        return {}

    fit(state, NumberedLoader(), folder, augment=lambda log_mel, generator: log_mel, validate=keep)
    return state, seen


def _is_averaged(name: str, value: Tensor) -> bool:
    return value.is_floating_point() and not name.endswith("memory")


@pytest.mark.parametrize(("every", "counted"), [(1, [4, 5, 6, 7, 8, 9]), (2, [4, 6, 8]), (4, [4, 8])])
def test_swa_is_the_plain_mean_of_the_weights_from_its_start(
    tmp_path: Path, every: int, counted: list[int]
) -> None:
    state, seen = _trained(tmp_path, swa_start_share=0.4, swa_every=every)
    for name, value in state.kept.state_dict().items():
        if _is_averaged(name, value):
            want = torch.stack([seen[step][name].double() for step in counted]).mean(dim=0)
            torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=1e-6, msg=name)
        else:
            assert torch.equal(value, seen[counted[-1]][name]), name


def test_an_exponential_average_leaves_integers_and_memories_alone(tmp_path: Path) -> None:
    """Codes once were averaged in integers, where 0.7 * 5 + 0.3 * 5 may be 4."""
    state, seen = _trained(tmp_path, ema_decay=0.7)
    kept = state.kept.state_dict()
    assert torch.equal(kept["objective.codes"], torch.arange(9))
    assert torch.equal(kept["objective.memory"], seen[-1]["objective.memory"])
    want = seen[0]["student.conv.weight"].double()
    for later in seen[1:]:
        want = 0.7 * want + 0.3 * later["student.conv.weight"].double()
    torch.testing.assert_close(kept["student.conv.weight"].double(), want, rtol=1e-5, atol=1e-6)


def test_before_its_start_swa_stands_for_the_last_weights(tmp_path: Path) -> None:
    state, seen = _trained(tmp_path, swa_start_share=0.99)
    assert state.average is not None
    assert state.average.updates == 1
    for name, value in state.kept.state_dict().items():
        assert torch.equal(value, seen[-1][name]), name


def test_recalibrated_statistics_are_those_of_the_averaged_weights_over_the_batches(tmp_path: Path) -> None:
    state, _ = _trained(tmp_path, swa_start_share=0.4)
    batches = [NumberedLoader.numbered(number) for number in range(5)]
    recalibrate_average(state, iter(batches))
    student = state.kept["student"]
    assert isinstance(student, BatchNormStudent)
    means, variances = [], []
    with torch.no_grad():
        for batch in batches:
            assert batch.spectrogram is not None
            maps = student.conv(batch.spectrogram.float().unsqueeze(1)).double()
            means.append(maps.mean(dim=(0, 2, 3)))
            variances.append(maps.var(dim=(0, 2, 3)))
    torch.testing.assert_close(student.norm.running_mean.double(), torch.stack(means).mean(dim=0))
    torch.testing.assert_close(student.norm.running_var.double(), torch.stack(variances).mean(dim=0))
    assert student.norm.momentum == 0.1
