"""One member of a fine-tuning: a recipe's run and a held-out fold, from the manifest to a folder that embeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import artifact
from pipeline.audio.impulse import ResponseFolder
from pipeline.config import FinetuneConfig, TeacherConfig, TrainConfig, digest
from pipeline.finetuning import clips as labelled_clips
from pipeline.finetuning.clips import LabelledClips
from pipeline.finetuning.loader import ClipLoader
from pipeline.finetuning.networks import FrozenTeacher, WholeTeacher
from pipeline.finetuning.objective import ClassObjective, logits_of
from pipeline.finetuning.sound import Augmentation, spectral_statistics
from pipeline.frontends.log_mel import LogMel
from pipeline.manifest import Manifest
from pipeline.recipe import Run
from pipeline.students import build_student, students
from pipeline.students.checkpoint_file import content_digest
from pipeline.students.classifier import save_classifier
from pipeline.students.initial import load_initial
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.options import check_frontend
from pipeline.students.saved import save_student
from pipeline.teachers.base import Teacher
from pipeline.teachers.finetuned import base_digest, save_finetuned
from pipeline.teachers.registry import RUN_PREFIX, build_teacher
from pipeline.teachers.run_teacher import folder_of
from pipeline.training.confusion import confusion_matrix, write_confusion
from pipeline.training.loop import Progress, fit
from pipeline.training.state import TrainingState

HELD_OUT_FILE = "held_out.npz"
# Log-mels and embeddings made before are held in memory up to here; a batch at a time beyond.
MADE_BEFORE_BYTES = 2 << 30
_INCIDENTAL = {"device", "threads", "held_out_folds"}

OnDecode = Callable[[int, int], None]


@dataclass(frozen=True)
class Member:
    """A run of the recipe, and the fold that it does not hear (None: the manifest's split validation)."""

    run: Run
    fold: int | None
    folder: Path
    config: dict[str, Any]
    inputs: dict[str, str]

    @property
    def label(self) -> str:
        """How tables call it: ``name-seed0-fold1``."""
        return member_label(self.run, self.fold)

    @property
    def work(self) -> str:
        """The digest that names the work."""
        return artifact.identity("run", self.config, self.inputs)


def member_label(run: Run, fold: int | None) -> str:
    """Return ``name-seed0``, or ``name-seed0-fold1``."""
    return run.label if fold is None else f"{run.label}-fold{fold}"


def identity(run: Run, fold: int | None) -> dict[str, Any]:
    """Return what a member's weights depend on, its inputs apart."""
    config = run.recipe.finetune
    made: dict[str, Any] = {
        "finetune": config.model_dump(mode="json", exclude=_INCIDENTAL),
        "seed": run.seed,
        "fold": fold,
        "code": 1,
    }
    if config.teacher is None:
        made["student"] = run.recipe.student.counted()
        made["frontend"] = run.recipe.embed.frontend.model_dump(mode="json")
    return made


def inputs_of(run: Run, manifest: Manifest) -> dict[str, str]:
    """Return the digests of the manifest, of a teacher that is itself a run, and of the device responses."""
    config = run.recipe.finetune
    made = {"manifest": manifest.digest}
    if config.teacher is None and run.recipe.student.weights is not None:
        made["weights"] = content_digest(run.recipe.student.weights)
    if config.teacher is not None and config.teacher.name.startswith(RUN_PREFIX):
        made["teacher"] = artifact.read(folder_of(config.teacher.name)).digest
    if config.dir_probability > 0 and config.dir_folder is not None:
        made["device_responses"] = digest(
            [r.digest for r in ResponseFolder(config.dir_folder, "finetune.dir_folder").responses]
        )
    return made


def run_member(
    member: Member,
    manifest: Manifest,
    cache: Path,
    *,
    on_decode: OnDecode = lambda done, total: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> artifact.Artifact:
    """Train ``member`` from its checkpoint if there is one, score its held-out clips and finish its folder.

    A pure function of recipe and manifest on one processor: the same weights, however often it was killed.

    Args:
        cache: folder of decoded waveforms, shared by members.

    Raises:
        ManifestError: no labels to learn; TrainingError: nothing held out, or numbers that are not finite.
        TrainingStopped: ``should_stop`` said so; run it again to go on.
    """
    if artifact.is_finished(member.folder, member.work):
        return artifact.read(member.folder)
    config = member.run.recipe.finetune
    torch.set_num_threads(config.threads)
    torch.manual_seed(member.run.seed)
    clips = labelled_clips.labelled(manifest, config.label_column)
    held_out = clips.held_out(member.fold)
    member.folder.mkdir(parents=True, exist_ok=True)
    learner = _Learner(member, manifest, clips, np.flatnonzero(~held_out), cache, on_decode)
    state = learner.state
    loader = ClipLoader(
        learner.rows, config.batch_size, member.run.seed, learner.take, learner.augmentation.note
    )
    scored = np.flatnonzero(held_out)
    check = partial(_check, learner, scored)
    fit(
        state, loader, member.folder, augment=learner.augmentation, validate=check,
        on_progress=on_progress, should_stop=should_stop,
    )  # fmt: skip
    logits = learner.logits(scored)
    truth = clips.codes[scored]
    guess = logits.argmax(dim=1).numpy()
    matrix = confusion_matrix(truth, guess, len(clips.classes))
    write_confusion(member.folder, matrix, clips.classes, member.label)
    _write_held_out(member.folder, clips, scored, truth, logits)
    learner.save(member.folder, clips.classes)
    summary = {
        **check(), "steps": state.step, "fold": member.fold, "seed": member.run.seed, "classes": len(clips.classes),
        "training_clips": len(learner.rows), "held_out_clips": len(scored), "device": config.device,
        "accuracy": float((truth == guess).mean()),
    }  # fmt: skip
    return artifact.finish(
        member.folder, kind="run", config=member.config, inputs=member.inputs, summary=summary
    )


class _Learner:
    """The network of one member, its classifier, and the way from a row to what the network hears."""

    def __init__(
        self,
        member: Member,
        manifest: Manifest,
        clips: LabelledClips,
        rows: np.ndarray,
        cache: Path,
        on_decode: OnDecode,
    ) -> None:
        recipe = member.run.recipe
        self.recipe, self.config, self.rows = recipe, recipe.finetune, rows
        self.teacher: Teacher | None = None
        self.given = self.config.teacher
        rate_hz, window = recipe.embed.frontend.sample_rate_hz, None
        if self.given is not None:
            # Gradients want float32; the dtype of the recipe is for embedding.
            self.given = self.given.model_copy(update={"device": self.config.device, "dtype": "float32"})
            self.teacher = build_teacher(self.given, cache=recipe.paths.cache)
            self.base = base_digest(self.teacher)
            rate_hz, window = self.teacher.sample_rate_hz, self.teacher.window_samples
        self.samples = labelled_clips.clip_samples(self.config, clips.frame, rate_hz, window)
        self.waveforms = labelled_clips.waveforms(
            manifest, clips, rate_hz, self.samples, cache, on_progress=on_decode
        )
        self.log_mel = LogMel(recipe.embed.frontend) if self.teacher is None else None
        self.statistics = (0.0, 1.0)
        if self.log_mel is not None:
            self.statistics = spectral_statistics(self.log_mel, self.waveforms, rows, self.config.batch_size)
        network = self._network()
        classes = ClassObjective(
            network.embedding_dim, len(clips.classes), torch.from_numpy(clips.codes),
            self.config.label_smoothing,
        )  # fmt: skip
        self.state = TrainingState(network, classes, train_config(member.run), member.work)
        reached = clips.reached_by(self.config.dir_only)
        self.augmentation = Augmentation(
            self.config, self.log_mel, self.log_mel is not None, rate_hz, reached, self.statistics, classes
        )
        self.made: Tensor | None = None
        if isinstance(network, WholeTeacher) and self.config.freq_mixstyle_probability > 0:
            network.change_log_mel(partial(self.augmentation.mixstyle, generator=self.state.generator))
        self._make_before(network)
        if self.log_mel is not None:
            self.log_mel.to(self.state.device)

    def _network(self) -> NormalisedStudent | WholeTeacher | FrozenTeacher:
        if self.teacher is None:
            check_frontend(
                students.get(self.recipe.student.name), self.recipe.student, self.recipe.embed.frontend
            )
            backbone = build_student(self.recipe.student, self.recipe.embed.frontend.mels)
            load_initial(backbone, self.recipe.student, self.recipe.embed.frontend.mels)
            return NormalisedStudent(backbone, *self.statistics)
        if self.config.trained == "whole":
            return WholeTeacher(self.teacher)
        return FrozenTeacher(self.teacher, self.teacher.embedding_dim)

    def _make_before(self, network: nn.Module) -> None:
        """Make log-mels, or a frozen teacher's embeddings, of all clips once, where no draw acts before them."""
        if self.augmentation.changes_waveforms:
            return
        every = torch.from_numpy(np.arange(len(self.waveforms)))
        if self.log_mel is not None:
            frames = self.recipe.embed.frontend.frames(self.samples)
            if 4 * len(every) * frames * self.recipe.embed.frontend.mels > MADE_BEFORE_BYTES:
                return
            parts = [self.log_mel(torch.from_numpy(self.waveforms[part.numpy()])) for part in every.split(32)]
            self.made = torch.cat(parts)
            self.augmentation.log_mel = None
        elif isinstance(network, FrozenTeacher) and not self.config.mixup_alpha:
            assert self.teacher is not None
            self.made = torch.cat(
                [
                    self.teacher.embed(torch.from_numpy(self.waveforms[part.numpy()]))["embedding"].clone()
                    for part in every.split(32)
                ]
            )
            network._teacher[0] = None

    def take(self, rows: np.ndarray) -> Tensor:
        """Return what the augmentation hears of ``rows``."""
        return (
            torch.from_numpy(self.waveforms[rows]) if self.made is None else self.made[torch.from_numpy(rows)]
        )

    def hear(self, rows: np.ndarray) -> Tensor:
        """Return what the network hears of ``rows``, unaugmented."""
        taken = self.take(rows)
        if self.log_mel is None or self.made is not None:
            return taken
        return self.log_mel(taken.to(self.state.device))  # type: ignore[no-any-return]

    def logits(self, rows: np.ndarray) -> Tensor:
        """Return the kept network's logits of ``rows``."""
        kept, state = self.state.kept, self.state
        objective = cast(ClassObjective, kept["objective"])
        return logits_of(
            kept["student"], objective, self.hear, rows, self.config.batch_size, state.device, state.dtype
        )

    def save(self, folder: Path, classes: list[str]) -> None:
        """Write the network in the format that ``run:FOLDER`` reads."""
        kept = self.state.kept
        classifier = cast(ClassObjective, kept["objective"]).head.folded()
        save_classifier(folder, classifier, classes)
        network = kept["student"]
        if isinstance(network, NormalisedStudent):
            save_student(folder, network, self.recipe.student, self.recipe.embed.frontend)
            return
        assert self.teacher is not None
        assert self.config.teacher is not None
        save_finetuned(
            folder, self.teacher, _portable(self.config.teacher), self.base, classifier,
            trained=self.config.trained, window_samples=self.samples,
        )  # fmt: skip


def _portable(teacher: TeacherConfig) -> TeacherConfig:
    """Return the configuration with absolute paths, so that the run is found from any folder."""
    changes: dict[str, Any] = {}
    if teacher.weights is not None and teacher.weights.exists():
        changes["weights"] = teacher.weights.resolve()
    if teacher.name.startswith(RUN_PREFIX):
        changes["name"] = f"{RUN_PREFIX}{folder_of(teacher.name).resolve()}"
    return teacher.model_copy(update=changes)


def train_config(run: Run) -> TrainConfig:
    """Return the loop's configuration of a member."""
    config: FinetuneConfig = run.recipe.finetune
    shared = set(TrainConfig.model_fields) & set(FinetuneConfig.model_fields)
    return TrainConfig(**{name: getattr(config, name) for name in shared}, seed=run.seed)


def _check(learner: _Learner, rows: np.ndarray) -> dict[str, float]:
    objective = cast(ClassObjective, learner.state.kept["objective"])
    logits = learner.logits(rows)
    codes = objective.codes.cpu()[torch.from_numpy(rows)]
    loss = nn.functional.cross_entropy(logits, codes)
    accuracy = (logits.argmax(dim=1) == codes).double().mean()
    return {"validation_loss": float(loss), "validation_accuracy": float(accuracy)}


def _write_held_out(
    folder: Path, clips: LabelledClips, rows: np.ndarray, truth: np.ndarray, logits: Tensor
) -> None:
    with artifact.replacing(folder / HELD_OUT_FILE) as temporary:
        np.savez(
            temporary,
            clip_id=clips.frame["clip_id"].to_numpy(dtype=str)[rows],
            truth=truth,
            logits=logits.numpy(),
        )
