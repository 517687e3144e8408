"""Whether the student runs through ``torch.compile``."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.training.batch import Batch
from pipeline.training.precision import autocast
from pipeline.training.state import TrainingState

log = logging.getLogger(__name__)

TRIAL_STEPS = 10


def settle(state: TrainingState, batch: Batch) -> None:
    """Decide at the run's first step whether to compile; a resumed run keeps the decision, for its bits depend on it.

    Raises:
        ConfigError: ``train.compile`` is on and the student changes with every step.
    """
    if state.forward is not state.student:
        return
    wanted = state.config.compile
    if wanted == "on" and state.changes_by_step:
        raise ConfigError(
            "this student changes with the step, and each change would be compiled anew",
            expected="train.compile off or auto", got="on", run="--set train.compile=off",
        )  # fmt: skip
    if wanted == "auto" and state.compiled is None:
        barred = state.changes_by_step or state.config.frozen_backbone
        state.compiled = state.device.type == "cuda" and not barred and _trial(state, batch)
    elif wanted == "off":
        state.compiled = False
    if wanted == "on" or (wanted == "auto" and state.compiled):
        state.compiled = True
        state.forward = torch.compile(state.student)


def _trial(state: TrainingState, batch: Batch) -> bool:
    """Time forward and backward of a copy both ways, and return whether compiling pays within the run."""
    assert batch.spectrogram is not None
    rows = len(batch.spectrogram)
    if state.config.rank_rows == "slice":
        rows //= state.group.world
    rows = min(rows, state.config.micro_batch_size or rows)
    log_mel = batch.spectrogram[:rows].to(state.device, torch.float32).unsqueeze(1)
    student = copy.deepcopy(state.student)
    with torch.random.fork_rng([state.device]):
        eager_seconds = _seconds(state, student, log_mel)
        compiled = torch.compile(student)
        started = time.perf_counter()
        try:
            compiled_seconds = _seconds(state, compiled, log_mel)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            log.warning(
                "train.compile=auto: the student does not compile here (%s), it runs uncompiled", error
            )
            compiled_seconds = float("inf")
        spent = time.perf_counter() - started
    saved = (eager_seconds - compiled_seconds) * (state.config.steps - state.step)
    # The trial's own compilation is not used again: the run pays it once more.
    pays: bool = state.group.of_first(lambda: saved > spent)
    log.info(
        "train.compile=auto: %.2f ms a step, compiled %.2f ms after %.0f s: %s",
        1e3 * eager_seconds, 1e3 * compiled_seconds, spent, "compiled" if pays else "not compiled",
    )  # fmt: skip
    return pays


def _seconds(state: TrainingState, student: Callable[[Tensor], Tensor], log_mel: Tensor) -> float:
    """Return the seconds of one forward and backward, the first few left out."""

    def once() -> None:
        with autocast(state.dtype, state.device):
            embedding = student(log_mel)
        embedding.float().square().mean().backward()

    for _ in range(TRIAL_STEPS // 2):
        once()
    torch.cuda.synchronize(state.device)
    started = time.perf_counter()
    for _ in range(TRIAL_STEPS):
        once()
    torch.cuda.synchronize(state.device)
    return (time.perf_counter() - started) / TRIAL_STEPS
