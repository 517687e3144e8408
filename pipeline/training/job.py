"""One run from its recipe and its store to its finished folder. No subprocess, no printing."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.data.batch_augmentation import BatchAugmentation
from pipeline.data.loader import ShardLoader
from pipeline.data.row_weights import draws_of
from pipeline.data.target_rows import TargetRows, clean_rows
from pipeline.errors import ConfigError, TrainingError
from pipeline.processor import device_of
from pipeline.recipe import Run
from pipeline.store.combination import Combination
from pipeline.store.location import Place, is_url
from pipeline.store.reader import StoreReader
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.saved import save_student
from pipeline.training.class_scores import scored_into
from pipeline.training.class_task import check as check_classes
from pipeline.training.collapse import warn_if_collapsed
from pipeline.training.distributed import Group
from pipeline.training.loop import Progress, fit, recalibrate_average, validated
from pipeline.training.metrics import MetricsLog
from pipeline.training.precision import autocast_dtype
from pipeline.training.projector import save_head
from pipeline.training.rows import usable
from pipeline.training.start import begin
from pipeline.training.state import TrainingState
from pipeline.training.task import prepare_task
from pipeline.training.teacher_lr import teacher_logistic_regression
from pipeline.training.validation import STRUCTURE_ROWS, HeldOut, read_held_out, validate

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
LOCK_WAIT_SECONDS = 60.0
PARAMETER_SECTIONS = ("student", "targets", "loss", "relations", "sampling", "augment", "train")


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

    @property
    def threads(self) -> int:
        """CPU threads that it asks for."""
        return self.run.recipe.train.threads

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
    group: Group | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> artifact.Artifact:
    """Train ``job.run`` on its store, from its checkpoint if there is one, and finish its folder.

    A pure function of recipe and store on one processor: the same weights, however often it was killed.

    Args:
        group: the processes that train it together; each calls this with the same job, the first writes.

    Raises:
        TrainingError: nothing to train on, or numbers that are not finite.
        TrainingStopped: ``should_stop`` said so; run it again to go on.
    """
    group = group or Group()
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder) if group.is_first else nullcontext():
        if group.of_first(lambda: artifact.is_finished(job.folder, job.work)):
            return artifact.read(job.folder)
        if group.is_first:
            return _run(job, group, job.folder, on_progress, should_stop)
        # Whatever the others make beside their gradients is the first one's to keep.
        with tempfile.TemporaryDirectory(prefix="ossicle-rank-") as scratch:
            return _run(job, group, Path(scratch), on_progress, should_stop)


def _run(
    job: Job,
    group: Group,
    folder: Path,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> artifact.Artifact:
    """Train the job; everything but the checkpoint's reading happens in ``folder``."""
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
    if recipe.train.control == "teacher_lr":
        if group.is_first:
            figures = teacher_logistic_regression(recipe, reader, training, folder, job.run.label)
            figures["control"] = "teacher_lr"
            artifact.finish(folder, kind="run", config=job.config, inputs=job.inputs, summary=figures)
        group.wait()
        return artifact.read(job.folder)
    check_classes(recipe, reader, job.inputs.get("logits"))
    start = begin(recipe, reader, training)
    student = start.student
    held_out = read_held_out(reader, recipe.train)
    if recipe.train.control == "random":
        kept, summary = _leave_at_random(job, folder, student, held_out, group)
    else:
        kept, summary = _train(
            job, group, folder, reader, training, student, held_out, on_progress, should_stop
        )
    rows = min(len(held_out.index), STRUCTURE_ROWS)
    summary["collapsed"] = warn_if_collapsed(
        summary["effective_rank"], rows, student.embedding_dim, job.run.label
    )
    save_student(folder, kept, recipe.student, recipe.embed.frontend, start.teacher, start.checkpoint)
    summary |= {"control": recipe.train.control, "embedding_dim": student.embedding_dim,
                "mean": float(student.mean), "std": float(student.std), "device": recipe.train.device,
                "processes": group.world, **start.summary}  # fmt: skip
    if group.is_first:
        artifact.finish(folder, kind="run", config=job.config, inputs=job.inputs, summary=summary)
    group.wait()
    return artifact.read(job.folder)


def _leave_at_random(
    job: Job, folder: Path, student: NormalisedStudent, held_out: HeldOut, group: Group
) -> tuple[NormalisedStudent, dict[str, Any]]:
    config = job.run.recipe.train
    device = device_of(config.device, "train.device") if group.is_alone else group.device
    student.to(device)
    dtype = autocast_dtype(config, device)
    figures = group.of_first(lambda: validate(student, None, held_out, config.batch_size, device, dtype))
    metrics = MetricsLog(
        folder, -1, config, run_name=job.run.label, parameters=parameters_of(job.run.recipe),
        silent=not group.is_first,
    )  # fmt: skip
    metrics.append({"step": 0, **figures})
    metrics.close()
    return student, {**figures, "steps": 0}


def _train(
    job: Job,
    group: Group,
    folder: Path,
    reader: StoreReader,
    training: np.ndarray,
    student: NormalisedStudent,
    held_out: HeldOut,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> tuple[NormalisedStudent, dict[str, Any]]:
    recipe, config = job.run.recipe, job.run.recipe.train
    if config.early_stopping and not held_out.is_validation:
        raise ConfigError(
            "train.early_stopping needs validation rows and the store has none",
            expected="rows of split validation", got=0,
            run="--set train.early_stopping=0, or manifest.validation_share above 0",
        )  # fmt: skip
    with group.first_goes_first():
        task = prepare_task(recipe, reader, training, student, held_out, folder, job.inputs.get("logits"))
    state = TrainingState(student, task.objective, config, job.work, group)
    check = partial(_check, state, held_out)
    loader = loader_of(recipe, reader, task.rows, group)
    augment = augmentation(recipe, float(student.mean), float(student.std))
    fit(
        state, loader, job.folder, augment=augment, validate=check, on_progress=on_progress,
        should_stop=should_stop, run_name=job.run.label, parameters=parameters_of(recipe),
    )  # fmt: skip
    # Whole batches, of which every process takes its part.
    if state.average is not None and state.average.is_equal:
        recalibrate_average(state, loader_of(recipe, reader, task.rows, Group()).one_epoch())
    kept = state.kept
    for name, head in kept["objective"].saved_heads.items():  # type: ignore[operator,union-attr]
        save_head(folder / name, head)
    summary = {
        **task.summary,
        **validated(state, check),
        "steps": state.step,
        "compiled": bool(state.compiled),
    }
    if state.skipped:
        summary["skipped_batches"] = state.skipped
    if group.is_first:
        summary |= scored_into(
            folder, job.run.label, kept["student"], kept["objective"], reader, config, state.device, state.dtype
        )  # fmt: skip
    return cast(NormalisedStudent, kept["student"]), summary


def loader_of(recipe: Recipe, reader: StoreReader, rows: np.ndarray, group: Group) -> ShardLoader:
    """Return the batches of this process: every batch whole, or those of its own rows (``train.rank_rows``)."""
    config = recipe.train
    spread = config.rank_rows == "span"
    rank, world = (group.rank.rank, group.world) if spread else (0, 1)
    with group.first_goes_first():
        draws = draws_of(reader, rows, recipe.sampling, recipe.paths.artifacts)
    clean = recipe.augment.view_target == "clean"
    return ShardLoader(
        reader, config.batch_size // world, config.seed, config.shuffle_rows, split="train", rank=rank,
        world=world, mask=rows, draws=draws,
        targets=TargetRows(reader, clean_rows(reader), rows) if clean else None,
    )  # fmt: skip


def parameters_of(recipe: Recipe) -> dict[str, str]:
    """Return the keys that make the run what it is: the student, the seed and all that is not its default."""
    found = {"student.name": recipe.student.name, "train.seed": str(recipe.train.seed)}
    for section in PARAMETER_SECTIONS:
        keys = getattr(recipe, section)
        for name, field in type(keys).model_fields.items():
            if getattr(keys, name) != field.default:
                found[f"{section}.{name}"] = str(getattr(keys, name))
    return found


def augmentation(recipe: Recipe, mean: float, deviation: float) -> BatchAugmentation:
    """Return the recipe's changes of log-mels whose training rows have this mean and deviation."""
    return BatchAugmentation(recipe.train, recipe.augment, recipe.embed.frontend, mean, deviation)


def _check(state: TrainingState, held_out: HeldOut) -> dict[str, float]:
    kept = state.kept
    return validate(
        kept["student"], kept["objective"], held_out, state.config.batch_size, state.device, state.dtype  # type: ignore[arg-type]
    )  # fmt: skip


@contextmanager
def locked(folder: Path) -> Iterator[None]:
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
