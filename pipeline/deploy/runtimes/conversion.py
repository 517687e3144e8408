"""One run for one other runtime: files, parity with the float file on held-out rows, and what an NPU would need."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pipeline import artifact
from pipeline.deploy.bundle import FP32, S8S8
from pipeline.deploy.calibration import CalibrationRows, read_rows
from pipeline.deploy.parity import centred_cosine
from pipeline.deploy.runtimes.targets import LITERT, Target
from pipeline.deploy.sessions import open_session, run_session
from pipeline.errors import MissingArtifactError, ParityError
from pipeline.neighbours import neighbour_overlap
from pipeline.store.location import Place
from pipeline.store.reader import StoreReader
from pipeline.students.saved import load_student, read_description

# Of a file to the ONNX file whose integers it carries: what rounding alone never costs.
LEAST_SAME_INTEGERS = 0.9
RESULT = "runtime.json"
Rows = Float[np.ndarray, "rows dim"]


@dataclass(frozen=True)
class ConversionJob:
    """A run and a target.

    Attributes:
        label: of the run.
        target: what for.
        export_folder: its ONNX files and weights.
        store_folder: the store that calibration and held-out rows come from.
        folder: where the files go.
        calibration_clips: rows that set int8 ranges; ``held_out_clips``: rows that files are compared on.
        tolerance: of float files, as a share of the largest output.
        config, inputs: what the result's digest is made of.
        python: interpreter of ExecuTorch's environment, for its targets.
    """

    label: str
    target: Target
    export_folder: Path
    store_folder: Place
    folder: Path
    calibration_clips: int
    held_out_clips: int
    tolerance: float
    config: dict[str, Any]
    inputs: dict[str, str]
    python: Path | None = None


def convert_run(job: ConversionJob) -> dict[str, Any]:
    """Write and compare every file of ``job``; the marker comes last. Returns the summary.

    Raises:
        ParityError: a float file differs from ONNX's, or an int8 file does not compute its ONNX file's integers.
        OssicleError: the target has no form for the student.
    """
    torch.set_num_threads(1)
    if job.folder.exists():
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True)
    description = read_description(job.export_folder)
    reader = StoreReader(job.store_folder, frontend=description.frontend)
    rows = read_rows(reader, calibration=job.calibration_clips, held_out=job.held_out_clips)
    reference = embed_one_by_one(job.export_folder / FP32, rows.held_out)
    if job.target.name == LITERT:
        files = _litert(job, rows, reference)
    elif job.target.needs_executorch:
        files = _executorch(job, rows, reference)
    else:
        files = _ethos_u(job, rows, reference)
    summary = {
        "label": job.label,
        "student": description.student.name,
        "target": job.target.name,
        "frames": int(rows.held_out.shape[3]),
        "compared_rows": len(rows.held_out),
        "compared_split": rows.held_out_split,
        "files": files,
    }
    artifact.write_json(job.folder / RESULT, summary)
    artifact.finish(job.folder, kind="runtime", config=job.config, inputs=job.inputs, summary=summary)
    return summary


def embed_one_by_one(path: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"]) -> Rows:
    """Return an ONNX file's embeddings, one row an inference, as a device computes them."""
    session = open_session(path)
    return np.concatenate([run_session(session, row[None]) for row in log_mels])


def likeness(got: Rows, reference: Rows) -> dict[str, float]:
    """Return how much of the float file's geometry is left: centred cosine and overlap of 10 neighbours."""
    overlap = neighbour_overlap(torch.from_numpy(got), torch.from_numpy(reference))
    return {"centred_cosine": centred_cosine(got, reference), "neighbour_overlap": overlap}


def _litert(job: ConversionJob, rows: CalibrationRows, reference: Rows) -> list[dict[str, Any]]:
    from pipeline.deploy.runtimes.litert import run_tflite
    from pipeline.deploy.tflite.convert import convert
    from pipeline.deploy.tflite.fixed_graph import at_shape

    frames = rows.held_out.shape[3]
    found = []
    for source, name, precision in ((FP32, "student_fp32", "fp32"), (S8S8, "student_int8", "int8")):
        if not (job.export_folder / source).is_file():
            continue
        made = convert(at_shape(job.export_folder / source, frames))
        path = job.folder / f"{name}.tflite"
        artifact.write_bytes(path, made.content)
        got = run_tflite(path, rows.held_out)
        entry = _entry(path, precision, got, reference)
        entry["operators"] = made.operators
        if precision == "fp32":
            _same_floats(path, got, reference, job.tolerance)
        else:
            entry["float_nodes"] = list(made.float_nodes)
            integers = embed_one_by_one(job.export_folder / source, rows.held_out)
            entry["to_onnx_int8"] = _same_integers(
                path, got, integers, made.output.scale[0] if made.output else None
            )
        found.append(entry)
    return found


def _ethos_u(job: ConversionJob, rows: CalibrationRows, reference: Rows) -> list[dict[str, Any]]:
    from pipeline.deploy import metadata
    from pipeline.deploy.runtimes.litert import run_tflite
    from pipeline.deploy.runtimes.vela import compile_tflite
    from pipeline.deploy.tflite.convert import convert
    from pipeline.deploy.tflite.fixed_graph import at_shape, in_int8

    source = job.export_folder / FP32
    normalisation = metadata.read(source).get("normalisation") or {"mean": None, "std": None}
    fixed = at_shape(source, rows.held_out.shape[3])
    whole = in_int8(fixed, rows.calibration, mean=normalisation["mean"], std=normalisation["std"])
    made = convert(whole, ends="int8", gather_by_convolution=True)
    path = job.folder / "student_npu.tflite"
    artifact.write_bytes(path, made.content)
    got = run_tflite(path, rows.held_out, kernels="reference")
    estimate = compile_tflite(path, job.folder, job.target)
    entry = _entry(path, "int8", got, reference)
    entry |= {
        "operators": made.operators,
        "float_nodes": list(made.float_nodes),
        "ran": "LiteRT reference kernels",
        "estimate": estimate.as_json(),
    }
    return [entry]


def _executorch(job: ConversionJob, rows: CalibrationRows, reference: Rows) -> list[dict[str, Any]]:
    from pipeline.deploy.runtimes.executorch import convert_student

    if job.python is None:
        raise MissingArtifactError("no ExecuTorch environment", run="make runtimes")
    programs = convert_student(
        load_student(job.export_folder),
        job.folder,
        rows,
        python=job.python,
        target=job.target,
    )
    found = []
    for program in programs:
        entry = _entry(program.path, program.name, program.embeddings, reference)
        entry |= {
            "ran": program.ran,
            "delegates": program.delegates,
            "delegated": program.delegated,
            "left": program.left,
        }
        entry["versions"] = program.versions
        if program.estimate is not None:
            entry["estimate"] = program.estimate.as_json()
        if program.name == "fp32":
            _same_floats(program.path, program.embeddings, reference, job.tolerance)
        found.append(entry)
    return found


def _entry(path: Path, precision: str, got: Rows, reference: Rows) -> dict[str, Any]:
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "precision": precision,
        "to_fp32": likeness(got, reference),
    }


def _same_floats(path: Path, got: Rows, reference: Rows, tolerance: float) -> None:
    apart = float(np.abs(got - reference).max() / max(float(np.abs(reference).max()), 1e-30))
    if not apart <= tolerance:
        raise ParityError(
            f"{path.name} differs from the float ONNX file on stored rows",
            expected=f"at most {tolerance:.1e} of the largest output",
            got=f"{apart:.1e}",
        )


def _same_integers(path: Path, got: Rows, integers: Rows, step: float | None) -> dict[str, Any]:
    """Return how far an int8 file is from its ONNX twin, in steps of the output where that is quantised."""
    cosine = centred_cosine(got, integers)
    if not cosine >= LEAST_SAME_INTEGERS:
        raise ParityError(
            f"{path.name} does not compute what its int8 ONNX file does",
            expected=f"centred cosine {LEAST_SAME_INTEGERS} or more",
            got=f"{cosine:.3f}",
        )
    found: dict[str, Any] = {"centred_cosine": cosine}
    if step:
        steps = np.rint(np.abs(got - integers) / step)
        found |= {"greatest_steps": int(steps.max()), "share_equal": float((steps == 0).mean())}
    return found
