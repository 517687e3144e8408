"""One exported run as C99: headers, example, and what the compiled student gives on stored rows."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float

from pipeline import artifact
from pipeline.deploy import metadata
from pipeline.deploy.c.build import (
    INCLUDE,
    OPTIMISED,
    SANITISED,
    SOURCES,
    STUDENT_FILTER,
    compile_source,
    compiler,
    run_program,
    student_input,
)
from pipeline.deploy.c.frontend import WrittenFrontend, write_frontend
from pipeline.deploy.c.golden import golden_header
from pipeline.deploy.c.graph import read
from pipeline.deploy.c.writer import Written, write
from pipeline.deploy.parity import centred_cosine
from pipeline.deploy.sessions import open_session, run_session
from pipeline.errors import OssicleError, ParityError
from pipeline.frontends.constants import PlainLogMelConstants

STUDENT_HEADER, FRONTEND_HEADER, GOLDEN_HEADER = "ossicle_student.h", "ossicle_frontend.h", "ossicle_golden.h"
EXAMPLE, CHECK = "embed.c", "check.c"
LEAST_CENTRED_COSINE = 0.999
EMBEDDING = "embedding"


@dataclass(frozen=True)
class Sources:
    """What was written, and what it costs."""

    student: Written
    frontend: WrittenFrontend


@dataclass(frozen=True)
class Likeness:
    """The compiled student beside ONNX Runtime's int8 on the same rows.

    Attributes:
        rows: compared.
        share_equal: of all numbers, those that are equal.
        greatest_steps: the largest difference in quantisation steps of the embedding; None where it is float there.
        greatest_difference: the same as a share of the largest number.
        centred_cosine: mean cosine to the int8 file after its mean embedding is taken off both.
    """

    rows: int
    share_equal: float
    greatest_steps: float | None
    greatest_difference: float
    centred_cosine: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))


def write_sources(source: Path, folder: Path, *, max_frames: int) -> Sources:
    """Write headers, golden vectors, example and check of one int8 file into ``folder``, the kernels beside them.

    Args:
        source: ``student_s8s8.onnx`` of an export.
        folder: made if it is not there.
        max_frames: the longest clip that the student takes; it sets the arena's size.

    Raises:
        OssicleError: the file is no export, or has an operator, a float map or a frontend that C has no form of.
    """
    described = metadata.read(source)
    if max_frames < 1:
        raise OssicleError("no clip is so short", expected="max_frames of 1 and more", got=max_frames)
    config = PlainLogMelConstants.read(described["frontend"])
    about = [
        f"{described.get('student', 'student')} of run {described.get('run') or 'unknown'}, int8, as C99.",
        f"Frontend: {config.sample_rate_hz} Hz, FFT {config.n_fft}, hop {config.hop_length}, {config.mels} bands.",
    ]
    for name, key in (
        ("Teacher", "teacher"),
        ("Licence of its weights", "teacher_licence"),
        ("Credit", "teacher_credit"),
    ):
        if described.get(key):
            about.append(f"{name}: {described[key]}")
    student = write(read(source, max_frames=max_frames), about=about)
    frontend = write_frontend(config, about=about[1:2])
    folder.mkdir(parents=True, exist_ok=True)
    artifact.write_bytes(folder / STUDENT_HEADER, student.text.encode())
    artifact.write_bytes(folder / FRONTEND_HEADER, frontend.text.encode())
    golden = golden_header(source, config, embedding_scale(source), max_frames=max_frames)
    artifact.write_bytes(folder / GOLDEN_HEADER, golden.encode())
    for path in (*sorted(INCLUDE.glob("*.h")), SOURCES / EXAMPLE, SOURCES / CHECK):
        with artifact.replacing(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)
    return Sources(student, frontend)


def compare(
    source: Path, folder: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"], *, sanitised: bool = False
) -> Likeness | None:
    """Compile the student of ``folder`` and compare it with ``source`` on ``log_mels``; None without a C compiler.

    Raises:
        ParityError: the centred cosine to the int8 file is below 0.999.
        MeasurementError: the compiler warns, or the program fails (with ``sanitised``: breaks a rule of memory or C).
    """
    if compiler() is None:
        return None
    with tempfile.TemporaryDirectory(prefix="ossicle-c-") as scratch:
        program = compile_source(
            SOURCES / STUDENT_FILTER, folder, Path(scratch) / "student",
            flags=SANITISED if sanitised else OPTIMISED,
        )  # fmt: skip
        written = run_program(program, student_input(list(log_mels[:, 0])))
    got = np.frombuffer(written, np.float32).reshape(len(log_mels), -1)
    return likeness(source, log_mels, got)


def likeness(
    source: Path, log_mels: Float[np.ndarray, "rows 1 mels frames"], got: Float[np.ndarray, "rows dim"]
) -> Likeness:
    """Return how ``got``, the C student's embeddings of ``log_mels``, compare with those of the int8 file.

    Raises:
        ParityError: the centred cosine is below 0.999.
    """
    session = open_session(source)
    want = np.concatenate([run_session(session, row[None]) for row in log_mels])
    apart = np.abs(got.astype(np.float64) - want)
    scale = embedding_scale(source)
    found = Likeness(
        rows=len(want),
        share_equal=float((apart == 0).mean()),
        greatest_steps=None if scale is None else float(apart.max() / scale),
        greatest_difference=float(apart.max() / max(float(np.abs(want).max()), 1e-30)),
        centred_cosine=centred_cosine(got, want) if len(want) > 1 else 1.0,
    )
    if not found.centred_cosine >= LEAST_CENTRED_COSINE:
        raise ParityError(
            "the compiled student does not compute its int8 file",
            expected=f"a centred cosine of at least {LEAST_CENTRED_COSINE}",
            got=f"{found.centred_cosine:.5f} over {found.rows} rows",
        )
    return found


def embedding_scale(source: Path) -> float | None:
    """Return the quantisation step of the embedding, or None where it leaves the graph in float."""
    graph = onnx.load(str(source)).graph
    values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        if EMBEDDING in node.output and node.op_type == "DequantizeLinear":
            return float(values[node.input[1]].reshape(()))
    return None
