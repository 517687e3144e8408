"""Executed ARM instructions of students in float32 and int8, as trained and in their deploy form: a table.

    python -m tests.benchmarks.int8_forms micronet_m0 mn04 --cpus cortex-a76

Counts do not depend on the weights: they are random here, with batch-norm statistics of dummy clips. ``int8 before``
is made from the student's own graph, ``int8 after`` from its deploy form, where it has one.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config import ExportConfig, LogMelConfig, StudentConfig
from pipeline.deploy.deploy_form import write_deploy_form
from pipeline.deploy.int8_graph import calibrate, write_quantised
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import export_student
from pipeline.measure import arm
from pipeline.measure.arm_root import CPUS
from pipeline.measure.int8_share import int8_share
from pipeline.students.checker import Clips, measure_statistics
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student

STUDENTS = ("micronet_m0", "micronet_m3", "mobilevitv2_050", "cp_mobile_128k", "mn04")
MELS, FRAMES = 64, 251
MEAN, STD = -8.25, 3.5
CALIBRATION_CLIPS = 16
TOLERANCE = 1e-4
FILES = ("fp32", "fp32_rewritten", "int8_before", "int8_after")


@dataclass(frozen=True)
class Row:
    """Instructions of one student on one processor, by file; a file that the student lacks is left out.

    Attributes:
        int8_macs: share of the executed MACs of the int8 file that is shipped.
    """

    student: str
    cpu: str
    instructions: dict[str, int]
    int8_macs: float

    @property
    def ratio(self) -> float:
        """Return int8 over the best float32 form, the smaller of each."""
        int8 = min(
            self.instructions[name] for name in ("int8_before", "int8_after") if name in self.instructions
        )
        return int8 / min(self.instructions[name] for name in FILES[:2] if name in self.instructions)


class RawClips(Clips):
    """Dummy clips in the frontend's unit."""

    def __call__(self, batch: int = 8, frames: int = FRAMES) -> Tensor:
        return super().__call__(batch, frames) * STD + MEAN


def write_files(name: str, folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write the student's files at random weights; each is run at other lengths and batches before."""
    torch.manual_seed(seed)
    raw = RawClips(MELS, seed)
    student = NormalisedStudent(build_student(StudentConfig(name=name), MELS), mean=MEAN, std=STD)
    measure_statistics(student, raw)
    metadata = ExportMetadata(LogMelConfig(mels=MELS), student=name, mean=MEAN, std=STD)
    files = {"fp32": folder / "fp32.onnx"}
    export_student(student, files["fp32"], metadata=metadata)
    inputs = [raw(1, 96).numpy(), raw(3, 251).numpy()]
    rewritten = folder / "fp32_rewritten.onnx"
    found = write_deploy_form(
        student, rewritten, inputs, metadata=metadata, opset=ExportConfig().opset, tolerance=TOLERANCE
    )
    rows = raw(CALIBRATION_CLIPS, FRAMES).numpy()
    files["int8_before"] = _quantised(files["fp32"], folder / "int8_before.onnx", rows)
    if found is not None:
        files["fp32_rewritten"] = rewritten
        files["int8_after"] = _quantised(rewritten, folder / "int8_after.onnx", rows)
    return files


def _quantised(source: Path, target: Path, rows: np.ndarray) -> Path:
    with tempfile.TemporaryDirectory() as work:
        write_quantised(calibrate(source, Path(work), rows, ExportConfig()), target, "s8s8", "all")
    return target


def measure(name: str, cpus: list[str]) -> list[Row]:
    """Return the student's counts."""
    value = (MEAN + STD * np.random.default_rng(0).standard_normal((1, 1, MELS, FRAMES))).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        files = write_files(name, Path(scratch))
        share = int8_share(files.get("int8_after", files["int8_before"]), value).share
        return [
            Row(
                name,
                cpu,
                {file: arm.count(path, value, cpu, runs=3).instructions for file, path in files.items()},
                share,
            )
            for cpu in cpus
        ]


def markdown(rows: list[Row]) -> str:
    """Return the table of docs/int8.md: millions of executed instructions."""
    lines = [
        "| student | core | fp32 | fp32 rewritten | int8 before | int8 after | int8 / best fp32 | MACs in int8 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{row.instructions[name] / 1e6:.2f}" if name in row.instructions else "-" for name in FILES]
        lines.append(
            f"| `{row.student}` | {row.cpu} | {' | '.join(cells)} | {row.ratio:.2f} | {100 * row.int8_macs:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("students", nargs="*", default=STUDENTS)
    parser.add_argument("--cpus", nargs="+", default=["cortex-a76", "cortex-a72"], choices=sorted(CPUS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in options.students for row in measure(name, options.cpus)]
    print(markdown(rows))


if __name__ == "__main__":
    main()
