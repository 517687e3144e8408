"""One finished run, fine-tuned through int8's rounding: from its folder and its store to int8 ONNX files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import artifact
from pipeline.config import AugmentConfig, Recipe, TrainConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.bundle import S8S8, U8S8, metadata_of
from pipeline.deploy.bundle import Job as ExportJob
from pipeline.deploy.calibration import CalibrationRows, rows_for
from pipeline.deploy.fidelity import Judge, embed_rows
from pipeline.deploy.parity import centred_cosine
from pipeline.errors import ConfigError, ParityError, WeightsError
from pipeline.neighbours import neighbour_overlap
from pipeline.processor import device_of
from pipeline.quantisation import start, writer
from pipeline.quantisation.graph import QuantisedGraph
from pipeline.quantisation.objective import BesideFloat, QatObjective
from pipeline.store.combination import Combination
from pipeline.store.reader import StoreReader
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.saved import SavedStudent, load_student, read_description
from pipeline.training.collapse import warn_if_collapsed
from pipeline.training.distributed import Group
from pipeline.training.job import Job, augmentation, loader_of, locked, parameters_of
from pipeline.training.loop import Progress, fit, validated
from pipeline.training.rows import usable
from pipeline.training.state import TrainingState
from pipeline.training.task import Task, prepare_task
from pipeline.training.validation import STRUCTURE_ROWS, HeldOut, read_held_out, validate
from pipeline.training.validation import embed_rows as embed_with_torch

# Rounded products differ where a sum falls between two integers: a few steps, never another embedding.
LEAST_AGREEMENT = 0.95

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QatJob(Job):
    """A finished run (``source``), the store it learnt from and the folder to fill."""

    source: Path = Path()

    @property
    def work(self) -> str:
        """The digest that names the work."""
        return artifact.identity("qat", self.config, self.inputs)

    @property
    def threads(self) -> int:
        """CPU threads that it asks for."""
        return self.run.recipe.qat.threads

    def to_json(self) -> str:
        """Return the job as one line of JSON, for another process."""
        return json.dumps({**json.loads(super().to_json()), "source": str(self.source)})

    @classmethod
    def from_json(cls, text: str) -> QatJob:
        """Return the job of ``to_json``."""
        base = Job.from_json(text)
        source = Path(json.loads(text)["source"])
        return cls(base.run, base.store, base.folder, base.config, base.inputs, source)


def run_qat(
    job: QatJob,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> artifact.Artifact:
    """Train the int8 graph of ``job.source`` from its checkpoint if there is one, write its files, finish its folder.

    A pure function of run, recipe and store on one processor: the same weights, however often it was killed.

    Raises:
        OssicleError: the graph holds an operator that is not known here.
        ParityError: ONNX Runtime computes something else than the graph that was trained.
        TrainingError: nothing to train on, or numbers that are not finite.
        TrainingStopped: ``should_stop`` said so; run it again to go on.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder):
        if artifact.is_finished(job.folder, job.work):
            return artifact.read(job.folder)
        return _run(job, on_progress, should_stop)


@dataclass(frozen=True)
class _Given:
    """What a job trains from: the run's student, the store's rows, and the calibrated graph."""

    student: NormalisedStudent
    description: SavedStudent
    reader: StoreReader
    rows: CalibrationRows
    held_out: HeldOut
    template: onnx.ModelProto
    graph: QuantisedGraph


def _given(job: QatJob) -> _Given:
    recipe = job.run.recipe
    description, student = read_description(job.source), load_student(job.source).eval()
    teacher: str | Combination = job.inputs["teacher"]
    if recipe.targets.teachers:
        teacher = Combination.of(recipe.targets, job.inputs)
    reader = StoreReader(job.store, frontend=job.inputs["frontend"], teacher=teacher)
    rows = rows_for(reader, recipe.export)
    template, floats = start.graph(job.folder, job.source, student, description, rows, recipe.export)
    graph = QuantisedGraph(template, floats)
    return _Given(student, description, reader, rows, read_held_out(reader), template, graph)


def _run(
    job: QatJob, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]
) -> artifact.Artifact:
    recipe = job.run.recipe
    if not recipe.qat.student_weight and not _follows_teacher(recipe):
        raise ConfigError(
            f"{job.run.label} learnt from labels, and qat.student_weight is 0: nothing is followed",
            expected="qat.student_weight above 0", got=0, run="--set qat.student_weight=1",
        )  # fmt: skip
    config = train_config(recipe)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    given = _given(job)
    judge = Judge(job.folder / start.FLOAT, given.rows.held_out, given.rows.labelled)
    before = judge.fidelity(job.folder / start.INT8)
    _require_agreement(given.graph, job.folder / start.INT8, given.rows)
    device = device_of(config.device, "qat.device")
    overlap = partial(_teacher_overlap, given.held_out, config.batch_size, device)
    teacher_overlap = {"float": overlap(given.student.to(device)), "before": overlap(given.graph.to(device))}

    state, check = _trained(job, given, config, on_progress, should_stop)

    kept = cast(BesideFloat, state.kept["student"]).graph.cpu().eval()
    _write(job, given.template, kept, given.description)
    agreement = _require_agreement(kept, job.folder / S8S8, given.rows)
    after, unsigned = (judge.fidelity(job.folder / name) for name in (S8S8, U8S8))
    teacher_overlap["after"] = overlap(kept.to(device))
    figures = validated(state, check)
    label, objective = job.run.label, cast(QatObjective, state.kept["objective"])
    summary = {
        "label": label, "student": given.description.student.name, "steps": state.step,
        "before": before.as_json(), "after": after.as_json(), "unsigned": unsigned.as_json(),
        "teacher_neighbour_overlap": teacher_overlap, "float_probe_score": judge.probe_score,
        "agreement": agreement, "compared_rows": len(given.rows.held_out),
        "compared_split": given.rows.held_out_split, "improved": after.centred_cosine >= before.centred_cosine,
        "followed_teacher": objective.inner is not None, "file_bytes": (job.folder / S8S8).stat().st_size, **figures,
    }  # fmt: skip
    summary["collapsed"] = warn_if_collapsed(
        figures["effective_rank"], min(len(given.held_out.index), STRUCTURE_ROWS),
        given.description.embedding_dim, label,
    )  # fmt: skip
    if not summary["improved"]:
        log.warning(
            "%s: training took int8 further from float32: centred cosine %.4f, calibrated alone %.4f; lower "
            "qat.learning_rate or qat.teacher_weight, or ship --set export.int8_method=ptq",
            label, after.centred_cosine, before.centred_cosine,
        )  # fmt: skip
    return artifact.finish(
        job.folder, kind="qat", config=job.config, inputs=job.inputs, summary=json.loads(json.dumps(summary))
    )


def _trained(
    job: QatJob,
    given: _Given,
    config: TrainConfig,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> tuple[TrainingState, Callable[[], dict[str, float]]]:
    """Return the trained state and what validates it."""
    recipe, settings, reader = job.run.recipe, job.run.recipe.qat, given.reader
    training, student = usable(reader, "train"), given.student
    task = _task(job, reader, training, student, given.held_out)
    device = device_of(config.device, "qat.device")
    objective = QatObjective(
        None if task is None else task.objective, settings.teacher_weight, settings.student_weight,
        given.held_out.index,
        embed_with_torch(student, given.held_out.spectrogram, config.batch_size, device, None),
    )  # fmt: skip
    beside = BesideFloat(given.graph, student if settings.student_weight else None)
    state = TrainingState(beside, objective, config, job.work)
    check = partial(_check, state, given.held_out)
    trained = recipe.model_copy(update={"train": config, "augment": augment_config(recipe)})
    loader = loader_of(trained, reader, training if task is None else task.rows, Group())
    fit(
        state, loader, job.folder, augment=augmentation(trained, float(student.mean), float(student.std)),
        validate=check, on_progress=on_progress, should_stop=should_stop, run_name=job.run.label,
        parameters=parameters_of(recipe),
    )  # fmt: skip
    return state, check


def train_config(recipe: Recipe) -> TrainConfig:
    """Return the loop's configuration: the run's own, but for what ``[qat]`` says.

    Numbers stay float32, since a rounding of a rounding is another one; batch norms are folded.
    """
    config = recipe.qat
    changes: dict[str, Any] = {
        name: getattr(config, name)
        for name in set(type(config).model_fields) & set(TrainConfig.model_fields)
        if name != "batch_size"
    }
    unmoved = {
        "freq_mask_rows": 0, "time_mask_frames": 0, "roll_frames": 0,
    } if config.augment == "none" else {}  # fmt: skip
    kept = {
        name: getattr(recipe.train, name)
        for name in ("batch_size", "shuffle_rows", "freq_mask_rows", "time_mask_frames", "roll_frames", "bad_batches",
                     "label_column", "label_kind", "tensorboard", "mlflow")
    }  # fmt: skip
    own = {} if config.batch_size is None else {"batch_size": config.batch_size}
    return TrainConfig.model_validate({
        **kept, **changes, **unmoved, **own, "amp": "off", "compile": "off",
        "learning_rate_shares": {"student.graph.log_steps": config.step_learning_rate_share},
    })  # fmt: skip


def augment_config(recipe: Recipe) -> AugmentConfig:
    """Return ``[augment]``, or of it only which target an augmented view has where ``qat.augment`` is none."""
    if recipe.qat.augment == "none":
        return AugmentConfig(view_target=recipe.augment.view_target)
    return recipe.augment


def _follows_teacher(recipe: Recipe) -> bool:
    labelled = recipe.loss.needs_labels or recipe.targets.compression != "none"
    return recipe.train.control == "none" and not labelled and recipe.qat.teacher_weight > 0


def _task(
    job: QatJob, reader: StoreReader, training: np.ndarray, student: NormalisedStudent, held_out: HeldOut
) -> Task | None:
    """Return the run's own objective with its trained heads; None where it learnt from labels, or from nothing."""
    recipe = job.run.recipe
    if not _follows_teacher(recipe):
        return None
    task = prepare_task(recipe, reader, training, student, held_out, job.folder, job.inputs.get("logits"))
    for name, head in task.objective.saved_heads.items():  # type: ignore[operator,union-attr]
        _load_head(job.source / name, head)
    return task


def _load_head(path: Path, head: nn.Module) -> None:
    try:
        head.load_state_dict(safetensors.torch.load_file(str(path)))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path} is no head of the run's objective: {error}", run="ossicle distill RECIPE"
        ) from error


def _write(job: QatJob, template: onnx.ModelProto, graph: QuantisedGraph, description: SavedStudent) -> None:
    settings = job.run.recipe.export
    export = ExportJob(
        job.run.label, job.source, job.store, job.folder, settings, job.config, {"run": job.inputs["run"]}
    )
    metadata = metadata_of(description, export)
    told = {
        "calibration": "trained", "int8_method": "qat", "int8_ops": settings.int8_ops, "kept_float": "[]",
        "per_channel": str(settings.per_channel).lower(),
    }  # fmt: skip
    signed = writer.portable_model(template, graph)
    for path, precision, model in (
        (job.folder / S8S8, "s8s8", signed),
        (job.folder / U8S8, "u8s8", writer.unsigned_model(signed)),
    ):
        with artifact.replacing(path) as temporary:
            onnx.save(model, str(temporary))
            properties = replace(metadata, precision=precision, extra={**metadata.extra, **told}).properties()
            metadata_props.embed(temporary, properties)


def _require_agreement(graph: QuantisedGraph, path: Path, rows: CalibrationRows) -> float:
    """Return the centred cosine between the torch graph and ONNX Runtime's file on held-out rows.

    Raises:
        ParityError: they are two different networks.
    """
    given = rows.held_out[: start.AGREEMENT_ROWS]
    with torch.no_grad():
        got: Tensor = graph.eval()(torch.from_numpy(given))
    agreement = centred_cosine(got.numpy(), embed_rows(path, given))
    if not agreement >= LEAST_AGREEMENT:
        raise ParityError(
            f"{path.name} computes something else than the graph that is trained",
            expected=f"a centred cosine of {LEAST_AGREEMENT} or more", got=f"{agreement:.4f}",
            run="--set export.int8_method=ptq",
        )  # fmt: skip
    return agreement


def _teacher_overlap(held_out: HeldOut, batch_size: int, device: torch.device, student: nn.Module) -> float:
    """Return the share of each held-out row's 10 nearest in the teacher's embeddings that ``student`` finds too."""
    embedding = embed_with_torch(student, held_out.spectrogram[:STRUCTURE_ROWS], batch_size, device, None)
    return neighbour_overlap(embedding, held_out.embedding[:STRUCTURE_ROWS].to(device))


def _check(state: TrainingState, held_out: HeldOut) -> dict[str, float]:
    kept = state.kept
    return validate(
        kept["student"], kept["objective"], held_out, state.config.batch_size, state.device, state.dtype  # type: ignore[arg-type]
    )  # fmt: skip
