"""The training loop. A step: take a batch, augment, embed, compare, step the weights, average them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.artifact import write_json
from pipeline.errors import TrainingError
from pipeline.training.metrics import MetricsLog
from pipeline.training.optimiser import learning_rate
from pipeline.training.precision import autocast
from pipeline.training.state import Interval, TrainingState

LOG_EVERY = 20
BAD_BATCH_FILE = "bad_batch.json"


class Batch(Protocol):
    """The part of ``pipeline.data.loader.Batch`` that training uses."""

    @property
    def index(self) -> Tensor: ...
    @property
    def spectrogram(self) -> Tensor | None: ...
    @property
    def embedding(self) -> Tensor | None: ...


class Loader(Protocol):
    """The part of ``pipeline.data.loader.ShardLoader`` that training uses: endless, resumable."""

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Progress:
    """Where a run is, after every step."""

    step: int
    steps: int
    loss: float
    samples_per_second: float


class TrainingStopped(Exception):  # noqa: N818 - an outcome, not an error
    """Asked to stop; the checkpoint of ``step`` is written."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"stopped at step {step}")


Augment = Callable[[Tensor, torch.Generator], Tensor]


def fit(
    state: TrainingState,
    loader: Loader,
    folder: Path,
    *,
    augment: Augment,
    validate: Callable[[], dict[str, float]],
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train from wherever ``folder``'s checkpoint left off until ``train.steps`` or early stopping.

    Args:
        state: what is trained; holds the final weights afterwards (the best ones under early stopping).
        loader: endless batches; its state is part of the checkpoint.
        folder: gets ``checkpoint.safetensors`` and ``metrics.jsonl``.
        augment: ``(batch, mels, frames)`` float32 and a generator to the same shape; targets still hold.
        validate: figures of ``state.kept``; called every ``train.validate_every`` steps and at the end.

    Raises:
        TrainingError: the loss or the gradient is not finite; the batch's rows are in ``bad_batch.json``.
        TrainingStopped: ``should_stop`` said so; the checkpoint is written.
    """
    config = state.config
    loader_state = state.restore(folder)
    if loader_state is not None:
        loader.load_state_dict(loader_state)
    metrics = MetricsLog(folder, state.step, config.tensorboard)
    batches = iter(loader)
    state.model.train()
    while state.step < config.steps and not state.finished:
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        terms = update(state, batch, augment, folder)
        state.step += 1
        _add(state.interval, terms, len(batch.index), waited, time.perf_counter() - started)
        speed = state.interval.samples / state.interval.seconds
        if state.step % LOG_EVERY == 0 or state.step == config.steps:
            metrics.append(_record(state))
            state.interval = Interval()
        if state.step % config.validate_every == 0 or state.step == config.steps:
            figures = validate()
            metrics.append({"step": state.step, **figures})
            state.note_validation(figures.get("validation_loss"))
            state.save(folder, loader.state_dict())
        on_progress(Progress(state.step, config.steps, terms["loss"], speed))
        if should_stop() and state.step < config.steps and not state.finished:
            state.save(folder, loader.state_dict())
            metrics.close()
            raise TrainingStopped(state.step)
    metrics.close()
    state.take_best()


def update(state: TrainingState, batch: Batch, augment: Augment, folder: Path) -> dict[str, float]:
    """Make one update of the weights and return ``loss``, each term and ``gradient_norm``."""
    config, device = state.config, state.device
    assert batch.spectrogram is not None
    assert batch.embedding is not None
    rate = learning_rate(state.step, config)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    log_mel = augment(batch.spectrogram.to(device, torch.float32), state.generator)
    with autocast(state.dtype, device):
        embedding = state.student(log_mel.unsqueeze(1))
    total, terms = state.objective(embedding.float(), batch.index.to(device), batch.embedding.to(device))
    values = {"loss": float(total.detach()), **{name: float(value.detach()) for name, value in terms.items()}}
    if not math.isfinite(values["loss"]):
        raise _not_finite("loss", values, state, batch, folder)

    state.optimiser.zero_grad(set_to_none=True)
    state.scaler.scale(total).backward()
    state.scaler.unscale_(state.optimiser)
    limit = math.inf if config.clip_norm is None else config.clip_norm
    values["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(state.model.parameters(), limit))
    # A scaled float16 gradient may overflow by design: then the scaler skips the step and lowers its scale.
    if not math.isfinite(values["gradient_norm"]) and not state.scaler.is_enabled():
        raise _not_finite("gradient", values, state, batch, folder)
    state.scaler.step(state.optimiser)
    state.scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.model)
    return values


def _add(interval: Interval, terms: dict[str, float], samples: int, waited: float, seconds: float) -> None:
    for name, value in terms.items():
        interval.sums[name] = interval.sums.get(name, 0.0) + value
    interval.steps += 1
    interval.samples += samples
    interval.wait_seconds += waited
    interval.seconds += seconds


def _record(state: TrainingState) -> dict[str, Any]:
    interval = state.interval
    return {
        "step": state.step,
        **interval.means(),
        "lr": state.optimiser.param_groups[0]["lr"],
        "samples_per_second": interval.samples / interval.seconds,
        "data_wait_share": interval.wait_seconds / interval.seconds,
    }


def _not_finite(
    what: str, values: dict[str, float], state: TrainingState, batch: Batch, folder: Path
) -> TrainingError:
    path = folder / BAD_BATCH_FILE
    numbers = {name: repr(value) for name, value in values.items()}
    write_json(path, {"step": state.step, "rows": batch.index.tolist(), **numbers})
    return TrainingError(
        f"the {what} is not finite at step {state.step}",
        expected="finite numbers",
        got=", ".join(f"{name} {value}" for name, value in numbers.items()),
        run=f"see the batch's rows in {path}; lower train.learning_rate, or run ossicle store verify",
    )
