"""The loop: what a step does, what it refuses, what it keeps."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.errors import TrainingError
from pipeline.training.loop import fit
from pipeline.training.state import TrainingState
from tests.training.numbered_batches import DIM, ROWS, BatchNormStudent, NumberedLoader, SquaredErrors


class _Squares(SquaredErrors):
    def __init__(self, bad_step: int = -1) -> None:
        super().__init__()
        self.bad_step, self.calls = bad_step, 0

    def forward(self, embedding: Tensor, index: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, _ = super().forward(embedding, index, teacher)
        if self.calls == self.bad_step:
            loss = loss * float("nan")
        self.calls += 1
        return loss, {"squares": loss}


def _state(bad_step: int = -1, **changes: Any) -> TrainingState:
    torch.manual_seed(0)
    defaults = {"steps": 12, "warmup_steps": 2, "amp": "off", "validate_every": 4, "batch_size": ROWS}
    return TrainingState(
        BatchNormStudent(), _Squares(bad_step), TrainConfig(**{**defaults, **changes}), "w" * 64
    )


def _fit(state: TrainingState, folder: Path, figures: Any = dict) -> None:
    folder.mkdir(exist_ok=True)
    fit(state, NumberedLoader(), folder, augment=lambda log_mel, generator: log_mel, validate=figures)


def _bad_batch(folder: Path, step: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(str(folder / f"bad_batch_step{step}.safetensors"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_a_step_equals_adamw_written_out(tmp_path: Path) -> None:
    """Loshchilov and Hutter, 2019, algorithm 2, on every weight, with the clipping before it."""
    state = _state(steps=1, warmup_steps=1, learning_rate=0.05, weight_decay=0.3, clip_norm=0.01)
    model = copy.deepcopy(state.model)
    batch = next(iter(NumberedLoader()))
    assert batch.spectrogram is not None
    embedding = model["student"](batch.spectrogram.float().unsqueeze(1))
    total, _ = model["objective"](embedding, batch.index, batch.embedding)
    gradients = torch.autograd.grad(total, list(model.parameters()))
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    assert norm > 0.01
    _fit(state, tmp_path)
    pairs = zip(model.named_parameters(), gradients, state.model.parameters(), strict=True)
    for (name, before), gradient, after in pairs:
        clipped = gradient * 0.01 / norm
        first, second = 0.1 * clipped / (1 - 0.9), 0.001 * clipped.square() / (1 - 0.999)
        decayed = before * (1 - 0.05 * (0.3 if before.ndim > 1 else 0.0))
        want = decayed - 0.05 * first / (second.sqrt() + 1e-8)
        torch.testing.assert_close(after, want, rtol=1e-3, atol=1e-5, msg=name)


def test_the_average_follows_its_recursion(tmp_path: Path) -> None:
    decay = 0.7
    seen: list[dict[str, Tensor]] = []
    state = _state(ema_decay=decay, validate_every=1, steps=6)

    def keep() -> dict[str, float]:
        seen.append({k: v.clone().double() for k, v in state.model.state_dict().items()})
        return {}

    _fit(state, tmp_path, keep)
    want = seen[0]
    for later in seen[1:]:
        want = {name: decay * value + (1 - decay) * later[name] for name, value in want.items()}
    for name, value in state.kept.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), want[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_loss_that_is_not_finite_names_step_and_rows(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="loss is not finite at step 5") as raised:
        _fit(_state(bad_step=5), tmp_path)
    bad, header = _bad_batch(tmp_path, 5)
    assert bad["index"].tolist() == [500 + i for i in range(ROWS)]
    assert header["step"] == "5"
    assert json.loads(header["values"])["loss"] == "nan"
    assert "bad_batch_step5.safetensors" in str(raised.value)


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tmp_path: Path) -> None:
    state = _state()

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(DIM, DIM)

        def forward(
            self, embedding: Tensor, index: Tensor, teacher: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            # The root's slope at 0 is infinite: a finite loss with a gradient that is not.
            loss = (embedding * 0).square().sum().sqrt() + self.head(embedding).sum() * 0
            return loss, {}

    state.model["objective"] = Root()
    before = {k: v.clone() for k, v in state.model.named_parameters()}
    with pytest.raises(TrainingError, match="gradient is not finite at step 0"):
        _fit(state, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in state.model.named_parameters())


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    figures = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    seen: list[dict[str, Tensor]] = []
    state = _state(early_stopping=2, validate_every=2, steps=100)

    def validate() -> dict[str, float]:
        seen.append({k: v.clone() for k, v in state.model.state_dict().items()})
        return {"validation_loss": next(figures)}

    _fit(state, tmp_path, validate)
    assert state.step == 8
    for name, value in state.kept.state_dict().items():
        assert torch.equal(value, seen[1][name]), name


def test_without_early_stopping_the_last_weights_stay(tmp_path: Path) -> None:
    figures = iter([1.0, 2.0, 3.0])
    state = _state()
    _fit(state, tmp_path, lambda: {"validation_loss": next(figures)})
    assert state.step == 12
    assert not state.best


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_keeps_weights_and_loss_in_float32(tmp_path: Path, amp: str) -> None:
    exact, mixed = _state(steps=4), _state(steps=4, amp=amp)
    _fit(exact, tmp_path / "exact")
    _fit(mixed, tmp_path / "mixed")
    for (name, want), got in zip(exact.model.named_parameters(), mixed.model.parameters(), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0, atol=2e-2, msg=name)
    assert any(
        not torch.equal(a, b) for a, b in zip(exact.model.parameters(), mixed.model.parameters(), strict=True)
    )
