"""The keys of choosing among runs: ``[selection]``, ``[sweep]`` and ``[search]``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.section import Section

MetricName = Literal["neighbour_overlap", "validation_loss", "probe_score", "gap_recovered"]
CostName = Literal["macs", "parameters", "flash_kb", "ram_kb", "arm_instructions_per_second"]


class SelectionConfig(Section):
    """By which figure sweeps and searches choose; none of them ever sees a test fold."""

    metric: MetricName = Field(
        "neighbour_overlap",
        description="neighbour_overlap and validation_loss of the store's validation rows; probe_score: a probe on "
        "the store's labelled rows; gap_recovered: its share of the gap from an untrained student to the teacher",
    )
    label_column: str = Field("label", description="probe: column of clips.parquet")
    probe: Literal["knn", "linear"] = Field(
        "linear", description="with evaluate.neighbours, evaluate.logistic_c"
    )
    probe_rows: int = Field(4_096, ge=2, description="probe: labelled rows used at most")
    test_folds: tuple[int, ...] | None = Field(
        None, description="folds kept for the final evaluation; needed where the labelled rows have folds"
    )
    random_floors: int = Field(
        3, ge=1, description="gap_recovered: untrained students averaged for the floor"
    )


class SweepConfig(Section):
    """``ossicle sweep``."""

    trials: int = Field(30, ge=1, description="of the whole study, whoever runs them")
    space: dict[str, Any] = Field(
        {},
        description="recipe key to {low, high, log, step} or {choices}; {when} = condition; see docs/search.md",
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="grid = every combination, each once"
    )
    pruner: Literal["median", "halving", "none"] = Field(
        "median", description="stops hopeless runs at a validation; halving = successive halving"
    )
    startup_trials: int = Field(8, ge=0, description="random ones, before the sampler and the pruner judge")
    warmup_steps: int = Field(0, ge=0, description="no run is pruned before this step")
    seed: int = 0
    storage: str | None = Field(
        None,
        description="of the study: a journal file on a shared folder, or postgresql://, mysql://, sqlite:///; "
        "default a journal in the artifacts",
    )


class SearchConfig(Section):
    """``ossicle search``."""

    students: tuple[str, ...] = Field((), description="families searched; default those of docs/search.md")
    width_low: float = Field(0.15, gt=0, description="smallest channel multiplier tried")
    width_high: float = Field(2.0, gt=0, description="largest channel multiplier tried")
    mels: tuple[int, ...] = Field((), description="inputs searched; default the frontend's own")
    hop_lengths: tuple[int, ...] = Field((), description="in samples; default the frontend's own")
    space: dict[str, Any] = Field({}, description="further recipe keys, written as sweep.space")
    candidates: int = Field(
        40, ge=1, description="trained; those over the budget cost nothing and do not count"
    )
    steps: int = Field(600, ge=1, description="of each candidate's training")
    rungs: int = Field(
        3, ge=1, description="successive halving: times a candidate is judged, the end included"
    )
    reduction: int = Field(
        3, ge=2, description="successive halving: one of so many goes on, or the whole front"
    )
    max_parameters: int | None = Field(None, gt=0, description="of the student")
    max_macs: int | None = Field(None, gt=0, description="multiply-accumulates of one window")
    max_flash_kb: float | None = Field(None, gt=0, description="ONNX file in units of 1,024 bytes")
    max_ram_kb: float | None = Field(
        None, gt=0, description="peak of the activations in units of 1,024 bytes"
    )
    max_arm_instructions_per_second: float | None = Field(
        None, gt=0, description="executed by an emulated search.arm_cpu for one second of audio"
    )
    costs: tuple[CostName, ...] = Field(("macs",), min_length=1, description="what the score is set against")
    precision: Literal["fp32", "s8s8"] = Field(
        "s8s8", description="of the file whose flash, RAM and instructions are counted"
    )
    arm_cpu: Literal["cortex-a72", "cortex-a76"] = Field("cortex-a76", description="emulated")
    references: tuple[str, ...] | None = Field(
        None,
        description="hand-made runs of the recipe trained alike and drawn beside; default all; [] = none",
    )
    sampler: Literal["tpe", "random"] = Field("tpe", description="of the next candidate")
    startup_trials: int = Field(12, ge=0, description="random ones, before the sampler judges")
    seed: int = 0
    storage: str | None = Field(None, description="of the study, as sweep.storage")

    @model_validator(mode="after")
    def _possible(self) -> SearchConfig:
        if self.width_low > self.width_high:
            raise ValueError(f"width_low {self.width_low:g} is above width_high {self.width_high:g}")
        if len(set(self.costs)) < len(self.costs):
            raise ValueError("costs names one cost twice")
        least = self.reduction ** (self.rungs - 1)
        if self.steps < least:
            raise ValueError(f"{self.rungs} rungs at reduction {self.reduction} need {least} steps or more")
        return self
