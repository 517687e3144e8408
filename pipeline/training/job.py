"""One run from its recipe and its store to its finished folder. No subprocess, no printing."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import artifact
from pipeline.config import Recipe, TrainConfig
from pipeline.data.augment import spec_augment, time_roll
from pipeline.data.loader import ShardLoader
from pipeline.errors import ConfigError, TrainingError
from pipeline.processor import device_of
from pipeline.recipe import Run
from pipeline.store.combination import Combination
from pipeline.store.location import Place, is_url
from pipeline.store.reader import StoreReader
from pipeline.students import build_student
from pipeline.students.initial import load_initial
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.saved import TeacherCredit, save_student
from pipeline.training import targets
from pipeline.training.collapse import warn_if_collapsed
from pipeline.training.controls import LabelObjective, class_codes
from pipeline.training.loop import Augment, Progress, fit
from pipeline.training.metrics import MetricsLog
from pipeline.training.normalisation import global_statistics
from pipeline.training.objective import DistilObjective
from pipeline.training.precision import autocast_dtype
from pipeline.training.projector import save_head
from pipeline.training.rows import pieces, usable
from pipeline.training.state import TrainingState
from pipeline.training.validation import STRUCTURE_ROWS, HeldOut, read_held_out, validate

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
LOCK_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Job:
    """A run, the store it learns from and the folder it fills; ``config`` and ``inputs`` are its identity.

    ``inputs`` holds the digests of the store and of its ``frontend`` and ``teacher`` arrays.
    """

    run: Run
    store: Place
    folder: Path
    config: dict[str, Any]
    inputs: dict[str, str]

    @property
    def work(self) -> str:
        """The digest that names the work."""
        return artifact.identity("run", self.config, self.inputs)

    def to_json(self) -> str:
        """Return the job as one line of JSON, for another process."""
        return json.dumps({
            "recipe": self.run.recipe.model_dump(mode="json"), "name": self.run.name, "seed": self.run.seed,
            "store": str(self.store), "folder": str(self.folder),
            "config": self.config, "inputs": self.inputs,
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Return the job of ``to_json``."""
        found = json.loads(text)
        run = Run(found["name"], found["seed"], Recipe.model_validate(found["recipe"]))
        store = found["store"] if is_url(found["store"]) else Path(found["store"])
        return cls(run, store, Path(found["folder"]), found["config"], found["inputs"])


def run_job(
    job: Job,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> artifact.Artifact:
    """Train ``job.run`` on its store, from its checkpoint if there is one, and finish its folder.

    A pure function of recipe and store on one processor: the same weights, however often it was killed.

    Raises:
        TrainingError: nothing to train on, or numbers that are not finite.
        TrainingStopped: ``should_stop`` said so; run it again to go on.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with _lock(job.folder):
        if artifact.is_finished(job.folder, job.work):
            return artifact.read(job.folder)
        recipe = job.run.recipe
        torch.set_num_threads(recipe.train.threads)
        teacher_arrays: str | Combination = job.inputs["teacher"]
        if recipe.targets.teachers:
            teacher_arrays = Combination.of(recipe.targets, job.inputs)
        reader = StoreReader(job.store, frontend=job.inputs["frontend"], teacher=teacher_arrays)
        training = usable(reader, "train")
        if not training.any():
            raise TrainingError(
                f"the store has no usable rows of split train: {job.store}",
                expected="status ok and split train", got=f"{len(reader.rows)} rows",
                run=f"ossicle store inspect {recipe.name}",
            )  # fmt: skip
        spec = reader.embedding
        credit = TeacherCredit(name=spec.name, licence=spec.licence, citation=spec.config.get("citation", ""))
        teacher = credit if recipe.train.control == "none" else None
        mean, deviation = global_statistics(pieces(reader, training, "spectrogram"))
        torch.manual_seed(recipe.train.seed)
        backbone = build_student(recipe.student, recipe.embed.frontend.mels)
        started_from = None
        if recipe.train.control != "random":
            started_from = load_initial(backbone, recipe.student, recipe.embed.frontend.mels)
        student = NormalisedStudent(backbone, mean, deviation)
        held_out = read_held_out(reader)
        if recipe.train.control == "random":
            kept, summary = _leave_at_random(job, student, held_out)
        else:
            kept, summary = _train(job, reader, training, student, held_out, on_progress, should_stop)
        rows = min(len(held_out.index), STRUCTURE_ROWS)
        summary["collapsed"] = warn_if_collapsed(
            summary["effective_rank"], rows, student.embedding_dim, job.run.label
        )
        save_student(job.folder, kept, recipe.student, recipe.embed.frontend, teacher, started_from)
        if started_from is not None:
            summary["started_from"] = started_from.model_dump(mode="json")
        summary |= {"control": recipe.train.control, "embedding_dim": student.embedding_dim, "mean": mean,
                    "std": deviation, "device": recipe.train.device}  # fmt: skip
        return artifact.finish(job.folder, kind="run", config=job.config, inputs=job.inputs, summary=summary)


def _leave_at_random(
    job: Job, student: NormalisedStudent, held_out: HeldOut
) -> tuple[NormalisedStudent, dict[str, Any]]:
    config = job.run.recipe.train
    device = device_of(config.device, "train.device")
    student.to(device)
    figures = validate(student, None, held_out, config.batch_size, device, autocast_dtype(config, device))
    metrics = MetricsLog(job.folder, -1, config.tensorboard)
    metrics.append({"step": 0, **figures})
    metrics.close()
    return student, {**figures, "steps": 0}


def _train(
    job: Job,
    reader: StoreReader,
    training: np.ndarray,
    student: NormalisedStudent,
    held_out: HeldOut,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> tuple[NormalisedStudent, dict[str, Any]]:
    recipe, config, folder = job.run.recipe, job.run.recipe.train, job.folder
    if config.early_stopping and not held_out.is_validation:
        raise ConfigError(
            "train.early_stopping needs validation rows and the store has none",
            expected="rows of split validation", got=0,
            run="--set train.early_stopping=0, or manifest.validation_share above 0",
        )  # fmt: skip
    objective: nn.Module
    summary: dict[str, Any] = {}
    if config.control == "labels":
        classes, codes = class_codes(reader, config)
        objective = LabelObjective(student.embedding_dim, classes, codes)
        training = training & (codes.numpy() >= 0)
        artifact.write_json(folder / "classes.json", classes)
        summary |= {"classes": len(classes), "labelled_rows": int(training.sum())}
    else:
        sample = held_out.embedding[:STRUCTURE_ROWS] if held_out.is_validation else held_out.embedding[:0]
        transform, fidelity = targets.fit_and_save(
            pieces(reader, training, "embedding"), sample, recipe.targets, folder / "targets.safetensors",
            reader.widths,
        )  # fmt: skip
        objective = DistilObjective(student.embedding_dim, transform, recipe.loss)
        summary["targets"] = fidelity
    loader = ShardLoader(
        reader, config.batch_size, config.seed, config.shuffle_rows, split="train", mask=training
    )
    state = TrainingState(student, objective, config, job.work)
    check = partial(_check, state, held_out)
    augment = augmentation(config, float(student.mean))
    fit(
        state, loader, folder, augment=augment, validate=check, on_progress=on_progress, should_stop=should_stop
    )  # fmt: skip
    kept = state.kept
    head = "classifier.safetensors" if config.control == "labels" else "projector.safetensors"
    save_head(folder / head, kept["objective"].head)  # type: ignore[arg-type]
    return cast(NormalisedStudent, kept["student"]), {**summary, **check(), "steps": state.step}


def augmentation(config: TrainConfig, fill: float) -> Augment:
    """Return the exact augmentations of ``config``: a roll in time, then a masked band and span."""

    def augment(log_mel: Tensor, generator: torch.Generator) -> Tensor:
        rolled = time_roll(log_mel, config.roll_frames, generator)
        return spec_augment(
            rolled, freq_mask_rows=config.freq_mask_rows, time_mask_frames=config.time_mask_frames,
            fill=fill, generator=generator,
        )  # fmt: skip

    return augment


def _check(state: TrainingState, held_out: HeldOut) -> dict[str, float]:
    kept = state.kept
    return validate(
        kept["student"], kept["objective"], held_out, state.config.batch_size, state.device, state.dtype  # type: ignore[arg-type]
    )  # fmt: skip


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the run's folder. The wait covers a killed parent whose run still makes its last checkpoint."""
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrainingError(
                        f"another process trains this run: {folder}", expected="one process a run",
                        got="the folder is locked", run="wait for it, or stop it",
                    ) from None  # fmt: skip
                time.sleep(0.2)
        yield
    finally:
        os.close(handle)
