"""A run's whole state: weights, averages, optimiser, generators, early stopping; saved and restored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, DigestMismatchError, TrainingError
from pipeline.processor import device_of
from pipeline.training import checkpoint
from pipeline.training.averaging import WeightAverage
from pipeline.training.batch_norm import norms_of, synchronise
from pipeline.training.distributed import Group
from pipeline.training.objective import Objective
from pipeline.training.optimiser import build_optimiser
from pipeline.training.precision import autocast_dtype

# Early stopping's metric to the figure of a validation, and whether more of it is better.
WATCHED = {
    "loss": ("validation_loss", False),
    "neighbour_overlap": ("validation_neighbour_overlap", True),
    "probe_accuracy": ("validation_probe_accuracy", True),
}


@dataclass
class Interval:
    """Sums since the last line of metrics. The times are not restored: a resumed run counts its own."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0

    def means(self) -> dict[str, float]:
        """Return each term's mean over the interval's steps."""
        return {name: value / max(self.steps, 1) for name, value in self.sums.items()}


class TrainingState:
    """Student and objective on their device, with everything that changes while they train.

    A module of either that has a method ``at_step(step, steps)`` is told each step before it is made (DyMN's
    temperature, scheduled weights), so that what depends on the step is a pure function of it.

    Args:
        student: a ``NormalisedStudent``; objective: what it minimises, with its head.
        config: ``[train]``.
        work: digest of the run's work, written into checkpoints.
        group: the processes that train this run together.

    Raises:
        ConfigError: the batch does not divide among the processes, or everything is frozen.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: nn.Module,
        config: TrainConfig,
        work: str,
        group: Group | None = None,
    ) -> None:
        self.config, self.work, self.group = config, work, group or Group()
        if config.batch_size % self.group.world:
            raise ConfigError(
                "train.batch_size is shared out among all processes", got=config.batch_size,
                expected=f"a multiple of {self.group.world} processes",
                run=f"--set train.batch_size={-(-config.batch_size // self.group.world) * self.group.world}",
            )  # fmt: skip
        alone = self.group.is_alone
        self.device = device_of(config.device, "train.device") if alone else self.group.device
        self.dtype = autocast_dtype(config, self.device)
        if not alone and config.batch_norm == "synchronised":
            student = synchronise(student, self.device)
        if config.frozen_backbone:
            student.requires_grad_(False)
        self.model = nn.ModuleDict({"student": student, "objective": objective}).to(self.device)
        # Channels last is faster in float32 too: 54 against 81 ms a step of cnn4, one core (2026).
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = build_optimiser(self.model, config)
        averaged = config.ema_decay > 0 or config.swa_start_share is not None
        self.average = WeightAverage(self.model, config) if averaged else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.forward: Callable[[Tensor], Tensor] = student
        self.compiled: bool | None = None
        self.step = 0
        self.finished = False
        self.best_score = -math.inf
        self.stale_validations = 0
        self.skipped = 0
        self.best: dict[str, Tensor] = {}
        self.interval = Interval()
        self._told = [m for m in self.model.modules() if callable(getattr(m, "at_step", None))]

    @property
    def student(self) -> nn.Module:
        """The student that is updated."""
        return self.model["student"]

    @property
    def objective(self) -> Objective:
        """The objective that is updated."""
        return cast(Objective, self.model["objective"])

    @property
    def kept(self) -> nn.ModuleDict:
        """Student and objective as they are validated and saved: the average where there is one."""
        return self.average.module if self.average is not None else self.model

    @property
    def changes_by_step(self) -> bool:
        """Whether the student itself is told of every step."""
        return any(callable(getattr(module, "at_step", None)) for module in self.student.modules())

    def announce_step(self) -> None:
        """Tell every module that asks for it which update comes next."""
        for module in self._told:
            module.at_step(self.step, self.config.steps)  # type: ignore[operator]

    def prepare(self, *, validating: bool = False) -> None:
        """Put every module into the mode of training, or the kept ones into that of validation."""
        if validating:
            self.kept.eval()
            last = max(self.step - 1, 0)
            for module in self.kept.modules():
                if callable(getattr(module, "at_step", None)):
                    module.at_step(last, self.config.steps)  # type: ignore[operator]
            return
        self.model.train()
        if self.config.frozen_backbone:
            self.student.eval()
        elif self.config.batch_norm == "frozen":
            for norm in norms_of(self.student):
                norm.eval()

    def note_validation(self, figures: dict[str, float]) -> None:
        """Keep the best weights and count validations without a better score, where early stopping is on.

        Raises:
            TrainingError: the validation has no such figure.
        """
        if self.config.early_stopping == 0:
            return
        name, more_is_better = WATCHED[self.config.early_stopping_metric]
        if name not in figures:
            raise TrainingError(
                f"early stopping watches {name}, which this validation does not have",
                expected=name, got=", ".join(sorted(figures)), run="--set train.early_stopping=0",
            )  # fmt: skip
        score = figures[name] if more_is_better else -figures[name]
        if score > self.best_score:
            self.best_score, self.stale_validations = score, 0
            self.best = {name: value.detach().clone() for name, value in self.kept.state_dict().items()}
            return
        self.stale_validations += 1
        self.finished = self.stale_validations >= self.config.early_stopping

    def take_best(self) -> bool:
        """Put the best weights in place of the last ones where early stopping kept any; return whether."""
        if self.best:
            checkpoint.load_module(self.kept, self.best, "the best weights")
        return bool(self.best)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that this moment consists of, by ``group.name``."""
        tensors, _ = checkpoint.pack_optimiser(self.optimiser)
        tensors |= checkpoint.prefixed("model", self.model.state_dict())
        tensors |= checkpoint.prefixed("best", self.best)
        tensors |= checkpoint.pack_rng(self.generator, self.device)
        if self.average is not None:
            tensors |= checkpoint.prefixed("average", self.average.module.state_dict())
        return tensors

    def save(self, folder: Path, loader_state: dict[str, Any]) -> None:
        """Write a checkpoint of this moment; every process calls it, the first writes."""
        loaders = [loader_state]
        generators = self.group.gather_values(self.generator.get_state().unsqueeze(0))
        if self.config.rank_rows == "span":
            loaders = self.group.gather_json(loader_state)
        values = {
            "optimiser": checkpoint.pack_optimiser(self.optimiser)[1],
            "scaler": self.scaler.state_dict(),
            "loaders": loaders,
            "finished": self.finished,
            "best_score": None if math.isinf(self.best_score) else self.best_score,
            "stale_validations": self.stale_validations,
            "skipped": self.skipped,
            "averaged": self.average.updates if self.average is not None else 0,
            "compiled": self.compiled,
            "interval": {"sums": self.interval.sums, "steps": self.interval.steps},
        }
        if self.group.is_first:
            tensors = {**self.tensors(), "rng.augment": generators}
            checkpoint.save(folder, checkpoint.Checkpoint(self.work, self.step, tensors, values))
        self.group.wait()

    def restore(self, folder: Path) -> dict[str, Any] | None:
        """Go on from the folder's checkpoint; return the loader's state, or None where there is none yet.

        Raises:
            DigestMismatchError: of another run, or of another number of processes that each read their own rows.
        """
        found = checkpoint.load(folder, self.work)
        if found is None:
            return None
        where = str(folder / checkpoint.FILE)
        values = found.values
        loaders: list[dict[str, Any]] = values["loaders"]
        if self.config.rank_rows == "span" and len(loaders) != self.group.world:
            raise DigestMismatchError(
                f"{where} was made by another number of processes, and each read rows of its own",
                expected=f"{len(loaders)} processes", got=f"{self.group.world}",
                run="start as many processes (train.rank_rows=slice takes any number)",
            )  # fmt: skip
        checkpoint.load_module(self.model, found.group("model"), where)
        if self.average is not None:
            checkpoint.load_module(self.average.module, found.group("average"), where)
            self.average.updates = values["averaged"]
        checkpoint.unpack_optimiser(self.optimiser, found.group("optimiser"), values["optimiser"])
        checkpoint.unpack_rng(self.generator, found.group("rng"), self.device, self.group.rank.rank)
        self.scaler.load_state_dict(values["scaler"])
        self.best = {name: value.to(self.device) for name, value in found.group("best").items()}
        self.step, self.finished, self.skipped = found.step, values["finished"], values["skipped"]
        self.best_score = -math.inf if values["best_score"] is None else values["best_score"]
        self.stale_validations, self.compiled = values["stale_validations"], values["compiled"]
        self.interval = Interval(**values["interval"])
        return loaders[self.group.rank.rank if len(loaders) > 1 else 0]
