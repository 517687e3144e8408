"""Tasks: what is classified, where its audio and labels come from, how its folds are made."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationError, model_validator

from pipeline.config import Section
from pipeline.errors import ConfigError, near_matches

TASK_SUFFIX = ".toml"
OfClasses = Literal["accuracy", "balanced_accuracy", "mcc"]
OfValues = Literal["r2", "mae", "ccc"]
OfTags = Literal["mean_average_precision", "macro_auc"]
TaskMetric = Literal[OfClasses, OfValues, OfTags]
OVER_FOLDS = ("accuracy", "balanced_accuracy")
KIND_OF_METRIC: dict[str, str] = {
    **dict.fromkeys(get_args(OfClasses), "classes"),
    **dict.fromkeys(get_args(OfValues), "values"),
    **dict.fromkeys(get_args(OfTags), "tags"),
}


class AudioSource(Section):
    """Which table lists the clips, and its columns."""

    source: Literal["manifest", "csv", "dataset"] = Field(
        description="manifest = the recipe's own; csv = a file under audio root; dataset = a published one there"
    )
    dataset: str = Field(
        "",
        description="manifest: only clips of this dataset; empty = all. dataset: which, as manifest.inputs",
    )
    subset: str | None = Field(None, description="dataset: as manifest.inputs.subset")
    lists: str | None = Field(
        None, description="dataset: as manifest.inputs.lists, relative to the audio root"
    )
    file: str = Field("", description="csv: the table, relative to the audio root")
    path_column: str = Field("path", description="csv: paths relative to the audio root")
    label_column: str = Field("label", description="clips with an empty label are left out")
    group_column: str | None = Field(
        None,
        description="recording, kit or voice: the unit of the intervals; dataset: 'group' is its own grouping",
    )
    fold_column: str | None = Field(None, description="dataset: 'fold' is its own fold")
    condition_column: str | None = Field(
        None, description="dataset: a device or other condition whose clips are scored apart too"
    )
    tags: tuple[str, ...] = Field(
        (), description="of a task with several labels a clip: only these; empty = all"
    )
    tag_columns: tuple[str, ...] = Field(
        (), description="dataset: columns of a relevance from 0 to 1, present from 0.5, empty = not labelled"
    )

    @model_validator(mode="after")
    def _complete(self) -> AudioSource:
        if self.source == "csv" and not self.file:
            raise ValueError("source 'csv' needs a file")
        if self.source == "dataset" and not self.dataset:
            raise ValueError("source 'dataset' needs a dataset")
        if self.tags and self.tag_columns:
            raise ValueError("tags and tag_columns exclude each other")
        return self


class FoldPlan(Section):
    """How clips are divided: folds, each held out once, or the dataset's own splits, of which one is the test."""

    kind: Literal["column", "grouped_k_fold", "stratified_k_fold", "split"]
    count: int = Field(5, ge=2, description="of the k-fold kinds")
    seed: int = 0
    train: str = Field(
        "train", description="split: what the dataset calls the part that probes are fitted on"
    )
    validation: str = Field(
        "", description="split: the part that strengths are chosen on; empty = cross-validation of train"
    )
    test: str = Field("test", description="split: the part that is scored")


class Task(Section):
    """One task on frozen embeddings: classes, several labels a clip, or a value."""

    name: str
    title: str
    about: str = ""
    licence: str = Field(min_length=1)
    metric: TaskMetric = "accuracy"
    also: tuple[TaskMetric, ...] = Field(
        (), description="further metrics of the same labels, as scores of their own"
    )
    audio: AudioSource
    folds: FoldPlan

    @model_validator(mode="after")
    def _possible(self) -> Task:
        if self.folds.kind == "column" and self.audio.fold_column is None:
            raise ValueError("folds.kind 'column' needs audio.fold_column")
        if self.folds.kind == "grouped_k_fold" and self.audio.group_column is None:
            raise ValueError("folds.kind 'grouped_k_fold' needs audio.group_column")
        if self.folds.kind == "split" and self.audio.source != "dataset":
            raise ValueError("folds.kind 'split' needs audio.source 'dataset'")
        if self.folds.kind != "split" and (self.metric not in OVER_FOLDS or self.also):
            raise ValueError(
                f"folds are scored by {' or '.join(OVER_FOLDS)} alone; others need folds.kind 'split'"
            )
        if {KIND_OF_METRIC[name] for name in self.also} - {self.kind}:
            raise ValueError("also: metrics of another kind of label")
        if self.audio.tag_columns and self.kind != "tags":
            raise ValueError("audio.tag_columns need a metric of tags")
        return self

    @property
    def kind(self) -> str:
        """``classes``, ``values`` or ``tags``: what a label is."""
        return KIND_OF_METRIC[self.metric]


def read_task(name: str, folder: Path) -> Task:
    """Return the task ``name`` of ``folder`` (``data_manifests/tasks``).

    Raises:
        ConfigError: no such task (near matches listed), unreadable TOML, or an impossible key.
    """
    path = folder / f"{name}{TASK_SUFFIX}"
    if not path.is_file():
        known = [found.stem for found in folder.glob(f"*{TASK_SUFFIX}")]
        raise ConfigError(f"no task is called {name!r}", expected=near_matches(name, known), got=name)
    try:
        return Task(name=name, **tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in detail['loc']) or 'task'}: {detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors()
        ]
        raise ConfigError(f"{path}: {'; '.join(problems)}") from error
