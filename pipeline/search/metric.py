"""The figure by which runs are compared: read at every validation, and of the finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import Recipe, SelectionConfig
from pipeline.errors import ConfigError, TrainingError
from pipeline.search.development import DevelopmentProbe
from pipeline.search.space import Space
from pipeline.training.job import Job

OVERLAP, LOSS = "validation_neighbour_overlap", "validation_loss"
PROBES = ("probe_score", "gap_recovered")


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    Attributes:
        name: as ``selection.metric`` calls it.
        probe: what measures it, for the two that are no figure of the run itself.
    """

    name: str
    probe: DevelopmentProbe | None = None

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Which way is better."""
        return "minimize" if self.name == "validation_loss" else "maximize"

    def at_validation(self, record: Mapping[str, Any]) -> float | None:
        """Return the figure that a line of ``metrics.jsonl`` holds, for pruning; None where it holds none.

        While a run is trained, neighbour overlap stands in for the probes.
        """
        value = record.get(LOSS if self.name == "validation_loss" else OVERLAP)
        return float(value) if isinstance(value, int | float) else None

    def of_run(self, job: Job, summary: Mapping[str, Any]) -> float:
        """Return the figure of a finished run.

        Raises:
            TrainingError: the run has no such figure.
        """
        if self.probe is not None:
            found = self.probe.score(job)
            return found.gap_recovered if self.name == "gap_recovered" else found.score
        value = self.at_validation(summary)
        if value is None:
            raise TrainingError(
                f"the run has no {self.name}", expected="validation rows in the store, and finite figures",
                got=str(job.folder), run="--set manifest.validation_share=0.1, before the store is made",
            )  # fmt: skip
        return value


def metric_of(selection: SelectionConfig, base: Recipe, space: Space, jobs: Sequence[Job]) -> Metric:
    """Return the metric that a recipe asks for.

    Args:
        selection: the recipe's section.
        base: the recipe that is varied.
        space: what varies.
        jobs: one job at least on the store that is used.

    Raises:
        ConfigError: the metric cannot compare what the space varies, or needs labels that are not there.
    """
    if selection.metric == "validation_loss":
        varied = [d.key for d in space.dimensions if d.key.split(".")[0] in ("loss", "targets", "relations")]
        if varied:
            raise ConfigError(
                "validation losses of different objectives cannot be compared",
                expected="selection.metric = neighbour_overlap, probe_score or gap_recovered", got=", ".join(varied),
                run="--set selection.metric=neighbour_overlap",
            )  # fmt: skip
    if selection.metric in PROBES:
        return Metric(selection.metric, DevelopmentProbe(selection, base, jobs[0].store, jobs[0].inputs))
    return Metric(selection.metric)
