"""Tasks: what is classified, where its audio and labels come from, how its folds are made."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.config import Section
from pipeline.errors import ConfigError, near_matches

TASK_SUFFIX = ".toml"


class AudioSource(Section):
    """Which table lists the clips, and its columns."""

    source: Literal["manifest", "csv"] = Field(
        description="manifest = the recipe's own; csv = a file under audio root"
    )
    dataset: str = Field("", description="manifest: only clips of this dataset; empty = all")
    file: str = Field("", description="csv: the table, relative to the audio root")
    path_column: str = Field("path", description="csv: paths relative to the audio root")
    label_column: str = Field("label", description="clips with an empty label are left out")
    group_column: str | None = Field(None, description="recording, kit or voice: the unit of the intervals")
    fold_column: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> AudioSource:
        if self.source == "csv" and not self.file:
            raise ValueError("source 'csv' needs a file")
        return self


class FoldPlan(Section):
    """How clips are divided; every fold is held out once."""

    kind: Literal["column", "grouped_k_fold", "stratified_k_fold"]
    count: int = Field(5, ge=2, description="of the k-fold kinds")
    seed: int = 0


class Task(Section):
    """One classification task on frozen embeddings."""

    name: str
    title: str
    about: str = ""
    licence: str = Field(min_length=1)
    metric: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    audio: AudioSource
    folds: FoldPlan

    @model_validator(mode="after")
    def _possible(self) -> Task:
        if self.folds.kind == "column" and self.audio.fold_column is None:
            raise ValueError("folds.kind 'column' needs audio.fold_column")
        if self.folds.kind == "grouped_k_fold" and self.audio.group_column is None:
            raise ValueError("folds.kind 'grouped_k_fold' needs audio.group_column")
        return self


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
