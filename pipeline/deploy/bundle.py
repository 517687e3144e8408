"""Everything a device needs of one run in one folder: students, frontend, weights, parity report."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from pipeline import artifact
from pipeline.config import ExportConfig, LogMelConfig
from pipeline.deploy import int8, trained_int8
from pipeline.deploy.calibration import CalibrationRows, rows_for
from pipeline.deploy.deploy_form import write_deploy_form
from pipeline.deploy.fidelity import Judge
from pipeline.deploy.frontend_export import (
    FrontendBlock,
    FrontendGraph,
    export_frontend,
    export_frontend_stream,
)
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import export_student
from pipeline.deploy.parity import check_parity, check_runs, log_mel_inputs, waveform_inputs
from pipeline.deploy.sessions import open_session, run_session
from pipeline.deploy.shipping import FileFigures, Limits, decide
from pipeline.deploy.stream_bundle import write_streams
from pipeline.deploy.weight_only import write_weight_only
from pipeline.store.location import Place
from pipeline.store.reader import StoreReader
from pipeline.students.classifier import CLASSES_FILE, WithClassifier, read_classifier
from pipeline.students.classifier import WEIGHTS_FILE as CLASSIFIER_FILE
from pipeline.students.saved import SavedStudent, load_student, read_description

FP32, S8S8, U8S8 = "student_fp32.onnx", "student_s8s8.onnx", "student_u8s8.onnx"
# What the int8 files were made from, of a student with a deploy form.
DEPLOY = "student_deploy.onnx"
FRONTEND, FRONTEND_STREAM, PARITY = "frontend.onnx", "frontend_stream.onnx", "parity.json"


@dataclass(frozen=True)
class Job:
    """One run to export: where it is read and written, under which settings and identity.

    Attributes:
        label: of the run.
        run_folder: the trained run.
        store_folder: the store it was trained from; calibration rows come from it.
        folder: the export's folder.
        settings: the recipe's ``export`` section.
        config: what the export's digest is made of; ``inputs``: digests of what went in.
        trained: the finished folder of ``ossicle qat``, where int8 was trained; None = it is calibrated.
    """

    label: str
    run_folder: Path
    store_folder: Place
    folder: Path
    settings: ExportConfig
    config: dict[str, Any]
    inputs: dict[str, str]
    trained: Path | None = None


def export_run(job: Job) -> dict[str, Any]:
    """Write, load, run and compare every file of ``job``; the marker comes last. Returns the summary.

    Raises:
        ParityError: an exported file differs from torch beyond ``parity_atol``, or does not run.
        OssicleError: the exporter refuses the network.
    """
    torch.set_num_threads(1)
    if job.folder.exists():
        # What a killed export left: nothing in it is finished, some of it may be half written.
        shutil.rmtree(job.folder)
    student = load_student(job.run_folder).eval()
    description = read_description(job.run_folder)
    metadata = metadata_of(description, job)
    reader = StoreReader(job.store_folder, frontend=description.frontend, teacher=followed_teacher(job))
    rows = rows_for(reader, job.settings)
    inputs = log_mel_inputs(rows.held_out)
    report: dict[str, Any] = {}

    tolerance = job.settings.parity_atol
    written: nn.Module = student
    files = ["student.safetensors", "student.json"]
    if job.settings.classifier:
        classifier, classes = read_classifier(job.run_folder, student.embedding_dim)
        written = WithClassifier(student, classifier).eval()
        metadata = replace(metadata, extra={**metadata.extra, "classes": json.dumps(classes)})
        files += [CLASSIFIER_FILE, CLASSES_FILE]
    export_student(written, job.folder / FP32, metadata=metadata, opset=job.settings.opset)
    parity = check_parity(student, job.folder / FP32, inputs, tolerance=tolerance)
    report["student_fp32"] = parity.as_json()
    if isinstance(written, WithClassifier):
        of_logits = check_parity(written.logits, job.folder / FP32, inputs, tolerance=tolerance, output=1)
        report["student_fp32_logits"] = of_logits.as_json()
    report["frontend"] = write_frontend(description.frontend, job.folder / FRONTEND, job.settings)
    for name in files:
        with artifact.replacing(job.folder / name) as temporary:
            shutil.copyfile(job.run_folder / name, temporary)

    summary: dict[str, Any] = {
        "label": job.label,
        "student": description.student.name,
        "parameters": description.parameters,
        "fp32_bytes": (job.folder / FP32).stat().st_size,
        "parity_worst_relative": parity.worst,
        "int8": None,
        "ship": {},
    }
    report |= _weight_only_files(job, rows, metadata)
    if job.settings.int8:
        source = job.folder / FP32
        rewritten = None
        if job.settings.deploy_form and job.trained is None and not job.settings.classifier:
            rewritten = write_deploy_form(
                student,
                job.folder / DEPLOY,
                inputs,
                metadata=metadata,
                opset=job.settings.opset,
                tolerance=tolerance,
            )
        if rewritten is not None:
            source = job.folder / DEPLOY
            report["student_deploy"] = rewritten.as_json()
        quantise = int8.quantise if job.trained is None else partial(trained_int8.take, job.trained)
        found = quantise(source, job.folder, rows=rows, config=job.settings, metadata=metadata)
        for quantised in found:
            path = job.folder / f"student_{quantised.precision}.onnx"
            check_runs(path, inputs, embedding_dim=description.embedding_dim)
            report[path.stem] = quantised.as_json()
            if job.settings.classifier:
                report[path.stem]["same_answers"] = _same_answers(path, job.folder / FP32, rows.held_out)
        summary["int8"] = found[0].as_json()
        verdict = _verdict(job, found)
        summary["ship"], report["shipping"] = verdict["ship"], verdict
    if student.backbone.causal is not None:
        summary["stream"] = report["student_stream"] = write_streams(
            student, job.folder, rows=rows, inputs=inputs, settings=job.settings, metadata=metadata
        )
        if not description.frontend.standardise:
            # Standardisation needs the whole waveform.
            report["frontend_stream"] = write_frontend_stream(
                description.frontend, job.folder / FRONTEND_STREAM, job.settings
            )
    artifact.write_json(job.folder / PARITY, report)
    artifact.finish(job.folder, kind="export", config=job.config, inputs=job.inputs, summary=summary)
    return summary


def followed_teacher(job: Job) -> str | None:
    """Return the digest of the teacher array that the run followed (of several the first), None if it says none.

    Calibration rows are drawn by clusters of its embeddings.
    """
    if job.settings.calibration_draw == "stored":
        return None
    inputs = artifact.read(job.run_folder).inputs
    return inputs.get("teacher.0", inputs.get("teacher"))


def _weight_only_files(job: Job, rows: CalibrationRows, metadata: ExportMetadata) -> dict[str, Any]:
    """Write the weight-only files that the recipe asks for; return what ``parity.json`` says of each."""
    if not job.settings.weight_only_bits:
        return {}
    judge = Judge(job.folder / FP32, rows.held_out, rows.labelled)
    found = {}
    for bits in job.settings.weight_only_bits:
        path = job.folder / f"student_w{bits}.onnx"
        found[path.stem] = write_weight_only(
            job.folder / FP32, path, bits, judge=judge, metadata=metadata, log_mels=rows.calibration
        ).as_json()
    return found


def _verdict(job: Job, found: list[int8.Quantised]) -> dict[str, Any]:
    """Return which file to ship by what it keeps and its size; ``ossicle benchmark`` decides by cost."""
    files = [FileFigures("fp32", (job.folder / FP32).stat().st_size)]
    files += [
        FileFigures(
            one.precision,
            one.file_bytes,
            centred_cosine=one.centred_cosine,
            neighbour_overlap=one.neighbour_overlap,
            probe_drop=one.probe_drop,
        )
        for one in found
        if one.precision == "s8s8"  # the other is for timing on x86
    ]
    return decide(files, Limits.of_export(job.settings.model_dump())).as_json()


def _same_answers(path: Path, fp32: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"]) -> float:
    """Return the share of rows whose likeliest class is the float file's."""
    guesses = [
        np.concatenate(
            [run_session(session, log_mels[[row]], 1).argmax(axis=1) for row in range(len(log_mels))]
        )
        for session in map(open_session, (path, fp32))
    ]
    return float((guesses[0] == guesses[1]).mean())


def write_frontend(config: LogMelConfig, path: Path, settings: ExportConfig) -> dict[str, Any]:
    """Write the frontend's file, compare it with torch at other batches and lengths; return the report."""
    export_frontend(config, path, opset=settings.opset)
    graph = FrontendGraph(config).eval()
    return check_parity(graph, path, waveform_inputs(), tolerance=settings.parity_atol).as_json()


def write_frontend_stream(config: LogMelConfig, path: Path, settings: ExportConfig) -> dict[str, Any]:
    """Write the frontend of a causal student's stream, compare its blocks with torch; return the report."""
    export_frontend_stream(config, path, opset=settings.opset)
    graph = FrontendBlock(config).eval()
    return check_parity(graph, path, waveform_inputs(), tolerance=settings.parity_atol).as_json()


def metadata_of(description: SavedStudent, job: Job) -> ExportMetadata:
    """Return what the exported files say about themselves."""
    teacher = description.teacher
    start = description.started_from
    return ExportMetadata(
        frontend=description.frontend,
        mean=description.mean,
        std=description.std,
        embedding_dim=description.embedding_dim,
        student=description.student.name,
        teacher=teacher.name if teacher else "",
        teacher_licence=teacher.licence if teacher else "",
        teacher_credit=teacher.citation if teacher else "",
        run=job.label,
        run_digest=job.inputs["run"],
        extra={} if start is None else {
            "started_from": f"{start.file} (SHA-256 {start.sha256})",
            "started_from_licence": start.licence,
            "started_from_credit": start.citation,
        },
    )  # fmt: skip
