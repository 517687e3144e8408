"""A sweep: trials of one recipe over a space, judged by one figure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.config import Recipe, SweepConfig
from pipeline.errors import OssicleError, TrainingError
from pipeline.search import study as studies
from pipeline.search.metric import Metric
from pipeline.search.space import Space, applied
from pipeline.search.study import Interrupted, Pruned, SharedStudy
from pipeline.search.trainer import train
from pipeline.training.job import Job

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial, Trial

# (trial, kind, fields): start, progress, refused, reused, pruned, failed, done, warning
Report = Callable[[int, str, dict[str, Any]], None]
TWIN_SECONDS = 0.5


class Trials(Protocol):
    """What a sweep and a budget search have in common."""

    @property
    def study(self) -> SharedStudy: ...
    @property
    def metric(self) -> Metric: ...
    @property
    def report(self) -> Report: ...


@dataclass(frozen=True)
class Sweep:
    """What every trial of a sweep shares.

    Attributes:
        base: the recipe, the space's fixed values set.
        job_of: the job of a recipe: its folder and identity.
    """

    study: SharedStudy
    space: Space
    base: Recipe
    metric: Metric
    job_of: Callable[[Recipe], Job]
    report: Report

    def body(self, trial: Trial, values: dict[str, Any], stopping: threading.Event) -> None:
        """Train one trial and give the study its value.

        Raises:
            Interrupted: ``stopping`` was set; the run has its checkpoint.
        """
        try:
            job = self.job_of(applied(self.base, values))
        except OssicleError as error:
            self.study.refuse(trial, one_line(error))
            self.report(trial.number, "refused", {"text": one_line(error)})
            return
        self.study.accept(trial, job.work, job.folder.name)
        if follow_twin(self.study, trial, job.work, self.report, stopping):
            return
        self._train(trial, job, stopping)

    def _train(self, trial: Trial, job: Job, stopping: threading.Event) -> None:
        def watch(step: int, record: dict[str, Any]) -> bool:
            value = self.metric.at_validation(record)
            if value is None or step >= job.run.recipe.train.steps:
                return False
            trial.report(value, step)
            return bool(trial.should_prune())

        conclude(self, trial, job, watch, stopping)


def conclude(
    trials: Trials,
    trial: Trial,
    job: Job,
    watch: Callable[[int, dict[str, Any]], bool],
    stopping: threading.Event,
    costs: Sequence[float] = (),
) -> None:
    """Train ``job`` and end ``trial`` by what came of it.

    Args:
        trials: what the trial is one of.
        watch: told of each validation; whether the run is hopeless.
        costs: further values of the trial.

    Raises:
        Interrupted: ``stopping`` was set; the run has its checkpoint.
    """
    study, report = trials.study, trials.report
    try:
        summary, seconds = timed(job, watch, trial.number, report, stopping)
        value = trials.metric.of_run(job, summary)
    except Pruned as pruned:
        study.close(trial, "PRUNED", steps=pruned.step)
        report(trial.number, "pruned", {"step": pruned.step})
    except TrainingError as error:
        study.close(trial, "FAIL", error=one_line(error))
        report(trial.number, "failed", {"text": one_line(error)})
    else:
        trial.set_user_attr(studies.STEPS, summary["steps"])
        trial.set_user_attr(studies.SECONDS, seconds)
        study.complete(trial, [value, *costs])
        report(trial.number, "done", {"value": value, "steps": summary["steps"]})


def timed(
    job: Job,
    watch: Callable[[int, dict[str, Any]], bool],
    number: int,
    report: Report,
    stopping: threading.Event,
) -> tuple[dict[str, Any], float]:
    """Train ``job`` and return its summary and the seconds it took here; events go to ``report``."""

    def on_event(event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind in ("start", "progress", "warning"):
            label = job.run.recipe.student.name
            report(number, kind, {"student": label, "total": job.run.recipe.train.steps, **event})

    began = time.monotonic()
    summary = train(job, watch=watch, on_event=on_event, stopping=stopping)
    return summary, round(time.monotonic() - began, 2)


def follow_twin(
    study: SharedStudy, trial: Trial, work: str, report: Report, stopping: threading.Event
) -> bool:
    """Give ``trial`` the result of an equal, earlier one, waiting for it if need be; False where there is none.

    Raises:
        Interrupted: ``stopping`` was set while waiting.
    """
    while (twin := study.twin(trial, work)) is not None:
        if twin.state.name == "RUNNING":
            if not study.is_owned(twin):
                return False
            if stopping.wait(TWIN_SECONDS):
                raise Interrupted
            continue
        copy_attributes(twin, trial)
        if twin.state.name == "COMPLETE":
            study.complete(trial, twin.values)
        else:
            study.close(trial, "PRUNED")
        report(trial.number, "reused", {"from": twin.number, "value": (twin.values or [None])[0]})
        return True
    return False


def copy_attributes(twin: FrozenTrial, trial: Trial) -> None:
    """Copy what the study holds of an equal trial's result."""
    trial.set_user_attr(studies.REUSED, twin.number)
    own = trial.user_attrs
    for name, value in twin.user_attrs.items():
        if name not in own and name not in (studies.REQUEUED, studies.WORKER):
            trial.set_user_attr(name, value)


def pruner_of(sweep: SweepConfig, base: Recipe) -> BasePruner:
    """Return Optuna's pruner for a sweep; its resource is the training step."""
    from optuna import pruners

    if sweep.pruner == "median":
        median: BasePruner = pruners.MedianPruner(
            n_startup_trials=sweep.startup_trials, n_warmup_steps=sweep.warmup_steps
        )
        return median
    if sweep.pruner == "halving":
        halving: BasePruner = pruners.SuccessiveHalvingPruner(
            min_resource=max(1, sweep.warmup_steps or base.train.validate_every), reduction_factor=3
        )
        return halving
    none: BasePruner = pruners.NopPruner()
    return none


def one_line(error: OssicleError) -> str:
    """Return what is wrong, as a table's cell says it."""
    return error.problem if error.got is None else f"{error.problem} ({error.got})"
