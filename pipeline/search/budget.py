"""A budget search: candidates whose cost is known before they are trained, trained briefly, halved on the way."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import recipe as recipes
from pipeline.config import Recipe, SearchConfig
from pipeline.errors import MissingDependencyError, OssicleError
from pipeline.search import study as studies
from pipeline.search.cost import AT_ONCE, COSTS, Budget, CostMeter
from pipeline.search.halving import goes_on, rung_steps
from pipeline.search.metric import Metric
from pipeline.search.space import Space, applied
from pipeline.search.study import SharedStudy
from pipeline.search.sweep import Report, conclude, follow_twin, one_line
from pipeline.training.job import Job

if TYPE_CHECKING:
    from optuna.trial import Trial

COST = "costs"
_RUNG = "rung:"


@dataclass(frozen=True)
class BudgetSearch:
    """What every candidate of a search shares.

    Attributes:
        base: the recipe, the space's fixed values set, its training as long as the user wants it in the end.
        search: limits, costs, steps and rungs.
        job_of: the job of a recipe: its folder and identity.
    """

    study: SharedStudy
    space: Space
    base: Recipe
    search: SearchConfig
    metric: Metric
    meter: CostMeter
    job_of: Callable[[Recipe], Job]
    report: Report

    @property
    def rungs(self) -> list[int]:
        """Steps at which a candidate is judged."""
        return rung_steps(self.search.steps, self.search.rungs, self.search.reduction)

    @property
    def cost_names(self) -> list[str]:
        """Every cost that is limited or that the score is set against."""
        limited = Budget.of(self.search).limits
        return [name for name in COSTS if name in limited or name in self.search.costs]

    def brief(self, recipe: Recipe) -> Recipe:
        """Return ``recipe`` as a candidate is trained: ``search.steps`` long, validated at every rung."""
        train, steps = recipe.train, self.search.steps
        warmup = min(train.warmup_steps, round(train.warmup_steps * steps / max(train.steps, 1)))
        return recipes.change(
            recipe,
            {"train.steps": steps, "train.warmup_steps": warmup, "train.validate_every": self.rungs[0]},
            "search",
        )

    def measured(self, recipe: Recipe) -> dict[str, float]:
        """Return the recipe's costs; those that take an export only if the others are within the budget.

        Raises:
            OssicleError: it is over the budget, or cannot be built or exported.
        """
        budget, found = Budget.of(self.search), dict[str, float]()
        at_once = [name for name in self.cost_names if name in AT_ONCE]
        for names in (at_once, [name for name in self.cost_names if name not in AT_ONCE]):
            if names:
                found |= self.meter.costs(recipe, names)
            excess = budget.excess(found)
            if excess is not None:
                raise OssicleError("over the budget", got=excess)
        return found

    def body(self, trial: Trial, values: dict[str, Any], stopping: threading.Event) -> None:
        """Measure one candidate, train it if it fits, and give the study its score and costs.

        Raises:
            Interrupted: ``stopping`` was set; the run has its checkpoint.
            MissingDependencyError: what measures a cost is not installed.
        """
        try:
            recipe = self.brief(applied(self.base, values))
            costs = self.measured(recipe)
            job = self.job_of(recipe)
        except MissingDependencyError:
            raise
        except OssicleError as error:
            self.study.refuse(trial, one_line(error))
            self.report(trial.number, "refused", {"text": one_line(error)})
            return
        self.study.accept(trial, job.work, job.folder.name, **{COST: costs})
        if follow_twin(self.study, trial, job.work, self.report, stopping):
            return
        self._train(trial, job, costs, stopping)

    def _train(self, trial: Trial, job: Job, costs: dict[str, float], stopping: threading.Event) -> None:
        def watch(step: int, record: dict[str, Any]) -> bool:
            value = self.metric.at_validation(record)
            if value is None or step not in self.rungs[:-1]:
                return False
            trial.set_user_attr(f"{_RUNG}{step}", value)
            return not self._goes_on(job.work, step)

        conclude(self, trial, job, watch, stopping, self._cost_values(costs))

    def _goes_on(self, work: str, step: int) -> bool:
        """Whether the run ``work`` goes on from the rung at ``step``, beside all that have reached it."""
        reached: dict[str, list[float]] = {}
        for trial in self.study.trials():
            value = trial.user_attrs.get(f"{_RUNG}{step}")
            if value is not None:
                score = value if self.metric.direction == "minimize" else -value
                reached[trial.user_attrs[studies.WORK]] = [score, *self._cost_values(trial.user_attrs[COST])]
        return goes_on(list(reached).index(work), np.array(list(reached.values())), self.search.reduction)

    def _cost_values(self, costs: dict[str, float]) -> list[float]:
        # Costs span decades: in logarithms they are even for the sampler, and for the volume.
        return [math.log10(max(costs[name], 1.0)) for name in self.search.costs]


def last_rung(attributes: dict[str, Any]) -> tuple[int, float] | None:
    """Return step and score of the last rung that a trial with these attributes reached."""
    steps = {
        int(name.removeprefix(_RUNG)): value for name, value in attributes.items() if name.startswith(_RUNG)
    }
    return max(steps.items()) if steps else None
