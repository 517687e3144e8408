"""Averages of the weights along training, which are validated and saved in place of the last ones.

Exponential: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017. Equal (SWA): Izmailov,
Podoprikhin, Garipov, Vetrov and Wilson, "Averaging weights leads to wider optima", UAI 2018.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.training.batch_norm import norms_of

RECALIBRATION_BATCHES = 100


class WeightAverage:
    """A copy of the model that holds the average of its weights; the first update copies them.

    The running statistics of batch norms are averaged like weights. Any other buffer (memories, tables, counts)
    is the model's latest.
    """

    def __init__(self, model: nn.ModuleDict, config: TrainConfig) -> None:
        self.config = config
        self.module = copy.deepcopy(model)
        self.module.requires_grad_(False)
        self.updates = 0

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after update ``step`` (0-based), where the configuration counts that step."""
        if not self._counts(step):
            # Until SWA begins the last weights stand in for it.
            if not self.updates:
                self._copy(model)
            return
        if not self.updates:
            self._copy(model)
        else:
            share = 1 / (self.updates + 1) if self.is_equal else 1 - self.config.ema_decay
            averaged, current = _averaged(self.module), _averaged(model)
            torch._foreach_lerp_(averaged, current, share)
            self._copy(model, _rest)
        self.updates += 1

    @property
    def is_equal(self) -> bool:
        """Whether the average is SWA's."""
        return self.config.swa_start_share is not None

    def _counts(self, step: int) -> bool:
        if self.config.swa_start_share is None:
            return True
        first = int(self.config.swa_start_share * self.config.steps)
        return step >= first and (step - first) % self.config.swa_every == 0

    @torch.no_grad()
    def _copy(self, model: nn.Module, part: object = None) -> None:
        for pick in (_averaged, _rest) if part is None else (_rest,):
            for mine, theirs in zip(pick(self.module), pick(model), strict=True):
                mine.resize_(theirs.shape).copy_(theirs)


def _averaged(model: nn.Module) -> list[Tensor]:
    """Return the parameters and the batch norms' floating running statistics, detached."""
    statistics = [b for norm in norms_of(model) for b in norm.buffers() if b.is_floating_point()]
    return [value.detach() for value in (*model.parameters(), *statistics)]


def _rest(model: nn.Module) -> list[Tensor]:
    """Return the buffers that are not averaged."""
    averaged = {id(b) for norm in norms_of(model) for b in norm.buffers() if b.is_floating_point()}
    return [buffer for buffer in model.buffers() if id(buffer) not in averaged]


@torch.no_grad()
def recalibrate(student: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure the batch norms' statistics anew, for weights that no batch has seen (SWA, algorithm 1).

    Args:
        student: with averaged weights; its mode stays.
        batches: log-mels ``(batch, 1, mels, frames)`` on the student's device.
    """
    norms = norms_of(student)
    if not norms:
        return
    training, momenta = student.training, [norm.momentum for norm in norms]
    student.eval()
    for norm in norms:
        norm.reset_running_stats()
        # None = the plain mean over all batches.
        norm.momentum = None
        norm.train()
    for batch in batches:
        student(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    student.train(training)
