"""The training loop: batches to updates, metrics, validations and checkpoints, alone or with other processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.training import compilation
from pipeline.training.averaging import RECALIBRATION_BATCHES, recalibrate
from pipeline.training.bad_batch import BufferGuard
from pipeline.training.batch import Batch as Batch
from pipeline.training.metrics import MetricsLog
from pipeline.training.state import Interval, TrainingState
from pipeline.training.step import Augment as Augment
from pipeline.training.step import update as update

LOG_EVERY = 20
ASK_EVERY = 5


class Loader(Protocol):
    """The part of ``pipeline.data.loader.ShardLoader`` that training uses: endless, resumable."""

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Progress:
    """Where a run is, after every step; the loss is that of the last step that was not skipped."""

    step: int
    steps: int
    loss: float
    samples_per_second: float


class TrainingStopped(Exception):  # noqa: N818 - an outcome, not an error
    """Asked to stop; the checkpoint of ``step`` is written."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"stopped at step {step}")


def fit(
    state: TrainingState,
    loader: Loader,
    folder: Path,
    *,
    augment: Augment,
    validate: Callable[[], dict[str, float]],
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    run_name: str = "",
    parameters: Mapping[str, str] | None = None,
) -> None:
    """Train from wherever ``folder``'s checkpoint left off until ``train.steps`` or early stopping.

    Of several processes, each calls this with the same arguments; the first alone writes and validates.

    Args:
        state: what is trained; holds the final weights afterwards (the best ones under early stopping).
        loader: endless batches; its state is part of the checkpoint.
        folder: gets ``checkpoint.safetensors`` and ``metrics.jsonl``; all processes read it.
        augment: changes log-mels; targets still hold, or it says how they are mixed.
        validate: figures of ``state.kept``; called every ``train.validate_every`` steps and at the end.
        should_stop: of several processes, asked every ``ASK_EVERY`` steps; any one stops all.
        run_name: how MLflow calls the run; parameters: what it says of it, default ``[train]``.

    Raises:
        TrainingError: the loss or the gradient is not finite; the batch is in ``bad_batch_step<N>.safetensors``.
        TrainingStopped: ``should_stop`` said so; the checkpoint is written.
    """
    config, group = state.config, state.group
    loader_state = state.restore(folder)
    if loader_state is not None:
        loader.load_state_dict(loader_state)
    metrics = MetricsLog(
        folder, state.step, config, run_name=run_name, parameters=parameters, silent=not group.is_first
    )
    guard = BufferGuard() if config.bad_batches else None
    batches = iter(loader)
    loss = float("nan")
    state.prepare()
    try:
        while state.step < config.steps and not state.finished:
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            compilation.settle(state, batch)
            terms = update(state, batch, augment, folder, guard)
            state.step += 1
            rows = len(batch.index) * (group.world if config.rank_rows == "span" else 1)
            _add(state.interval, terms, rows, waited, time.perf_counter() - started)
            loss = loss if terms is None else terms["loss"]
            speed = state.interval.samples / state.interval.seconds
            if state.step % LOG_EVERY == 0 or state.step == config.steps:
                metrics.append(_record(state))
                state.interval = Interval()
            if state.step % config.validate_every == 0 or state.step == config.steps:
                figures = validated(state, validate)
                metrics.append({"step": state.step, **figures})
                state.note_validation(figures)
                state.save(folder, loader.state_dict())
            on_progress(Progress(state.step, config.steps, loss, speed))
            if _asked_to_stop(state, should_stop):
                state.save(folder, loader.state_dict())
                raise TrainingStopped(state.step)
    finally:
        metrics.close()
    state.take_best()


def validated(state: TrainingState, validate: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the figures of ``state.kept``, made by the first process and known to all."""
    state.prepare(validating=True)
    figures: dict[str, float] = state.group.of_first(validate)
    state.prepare()
    return figures


def recalibrate_average(state: TrainingState, batches: Iterator[Batch]) -> None:
    """Measure the batch norms' statistics of weights averaged by SWA on batches of the training rows.

    Args:
        batches: the first batches of a fixed order, unaugmented; every process is given the same.
    """
    if state.average is None or not state.average.is_equal or not state.average.updates:
        return

    def rows() -> Iterator[torch.Tensor]:
        for _, batch in zip(range(RECALIBRATION_BATCHES), batches, strict=False):
            assert batch.spectrogram is not None
            own = batch.spectrogram[state.group.part(len(batch.spectrogram))]
            yield own.to(state.device, torch.float32).unsqueeze(1)

    recalibrate(state.kept["student"], rows())


def _asked_to_stop(state: TrainingState, should_stop: Callable[[], bool]) -> bool:
    if state.step >= state.config.steps or state.finished:
        return False
    if state.group.is_alone:
        return should_stop()
    # The processes have to agree on the step; asking at each would cost a message a step.
    return state.step % ASK_EVERY == 0 and state.group.any(should_stop())


def _add(
    interval: Interval, terms: dict[str, float] | None, samples: int, waited: float, seconds: float
) -> None:
    interval.samples += samples
    interval.wait_seconds += waited
    interval.seconds += seconds
    if terms is None:
        return
    for name, value in terms.items():
        interval.sums[name] = interval.sums.get(name, 0.0) + value
    interval.steps += 1


def _record(state: TrainingState) -> dict[str, Any]:
    interval = state.interval
    record = {
        "step": state.step,
        **interval.means(),
        "lr": state.optimiser.param_groups[0]["lr"],
        "samples_per_second": interval.samples / interval.seconds,
        "data_wait_share": interval.wait_seconds / interval.seconds,
    }
    return record | ({"skipped_batches": state.skipped} if state.skipped else {})
