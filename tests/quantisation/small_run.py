"""A finished run on the small store, and the job that trains its int8 graph."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.quantisation.job import QatJob, run_qat
from pipeline.recipe import Run
from pipeline.students.saved import load_student, read_description, save_student
from pipeline.training.job import run_job
from pipeline.training.loop import Progress
from tests.training.small_store import small_job, small_recipe, write_store


@dataclass(frozen=True)
class SmallRun:
    """A finished run, its recipe and its store."""

    recipe: Recipe
    store: Path
    folder: Path

    def job(self, folder: Path, **changes: Any) -> QatJob:
        """Return the job that fine-tunes it into ``folder``; dotted keys in ``changes``."""
        base = {"qat.warmup_steps": 2, "qat.validate_every": 4, "export.calibration_clips": 64}
        recipe = recipes.change(self.recipe, {**base, **changes})
        done = artifact.read(self.folder)
        return QatJob(
            Run("small", 0, recipe), self.store, folder, recipe.model_dump(mode="json"),
            {**done.inputs, "run": done.digest}, self.folder,
        )  # fmt: skip


def trained_run(folder: Path, **changes: Any) -> SmallRun:
    """Train a small student."""
    recipe = small_recipe(**changes)
    store = write_store(folder / "store", recipe)
    run_job(small_job(store, folder / "run", recipe))
    return SmallRun(recipe, store, folder / "run")


def stretch(run: Path, layers: tuple[str, str], spread: float) -> None:
    """Multiply the channels of one convolution and divide the next one's by the same: the same network in float.

    With ReLUs between, no embedding changes; but one range for a whole tensor now has to hold channels of very
    different size, which is what ruins a calibrated file.

    Args:
        run: folder of a finished run.
        layers: state names of the batch norm that follows the first convolution, and of the second's weight.
        spread: the largest factor over the smallest.
    """
    student, description = load_student(run), read_description(run)
    state = student.state_dict()
    norm, weight = layers
    channels, half = len(state[f"{norm}.weight"]), math.log10(spread) / 2
    factors = torch.logspace(-half, half, channels)
    state[f"{norm}.weight"] *= factors
    state[f"{norm}.bias"] *= factors
    state[weight] /= factors.reshape(1, -1, 1, 1)
    student.load_state_dict(state)
    save_student(run, student, description.student, description.frontend, description.teacher)


def killed_at(job: str, step: int) -> None:
    """Train a job given as JSON and get kill -9 after the update ``step``."""
    torch.set_num_threads(1)

    def watch(progress: Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    run_qat(QatJob.from_json(job), on_progress=watch)
