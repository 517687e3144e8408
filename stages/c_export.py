"""``ossicle c``: an exported run as C99 headers, compiled and compared with its int8 file on stored rows."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline import artifact
from pipeline.deploy import metadata
from pipeline.deploy.bundle import S8S8
from pipeline.deploy.c import build
from pipeline.deploy.c import export as c_export
from pipeline.deploy.calibration import read_rows
from pipeline.errors import MissingArtifactError
from pipeline.measure import c_instructions, c_toolchain
from pipeline.store.reader import StoreReader
from pipeline.students.saved import read_description
from stages import locations, run_records

# Every header is written by code of this number; a change of what is written raises it.
CODE = 1
RESULT = "c.json"
CPUS = ("cortex-a72", "cortex-a76")


def run(
    name: str,
    *,
    console: Console,
    store: str | None = None,
    max_frames: int | None = None,
    held_out_clips: int = 256,
    arm: bool = False,
) -> Path:
    """Write one exported run as C99; what was written before is reused.

    Args:
        name: a run's or an export's folder.
        console: for the table.
        store: where the run's store is, if not among the artifacts.
        max_frames: the longest clip that the student takes; default that of the store's rows.
        held_out_clips: rows that the compiled student is compared on.
        arm: also compile it for aarch64, run it in QEMU and count executed instructions.

    Returns:
        The folder of headers and example.

    Raises:
        MissingArtifactError: no such run, it is not exported or has no int8 file, or its store is not there.
        OssicleError: the student has an operator that C has no form of.
        ParityError: the compiled student does not compute its int8 file.
    """
    records = run_records.find(name)
    source = records.export.folder / S8S8
    if not source.is_file():
        raise MissingArtifactError(
            f"{records.export.folder.name} has no int8 file", expected=S8S8,
            run="ossicle export RECIPE --set export.int8=true",
        )  # fmt: skip
    place = run_records.store_of(records, None if store is None else locations.place_of(store))
    config = {"max_frames": max_frames, "held_out_clips": held_out_clips, "arm": arm, "code": CODE}
    inputs = {"export": records.export.digest}
    work = artifact.identity("c", config, inputs)
    folder = artifact.folder_for(records.root, "c", records.label, work)
    if not artifact.is_finished(folder, work):
        reader = StoreReader(place, frontend=read_description(records.export.folder).frontend)
        held_out = read_rows(reader, calibration=1, held_out=held_out_clips).held_out
        if folder.exists():
            shutil.rmtree(folder)
        with console.status(f"{records.label} as C99"):
            summary = _write(source, folder, held_out, max_frames, arm) | {"label": records.label}
        artifact.write_json(folder / RESULT, summary)
        artifact.finish(folder, kind="c", config=config, inputs=inputs, summary=summary)
    console.print(_table(artifact.read(folder).summary))
    return folder


def _write(
    source: Path, folder: Path, held_out: np.ndarray, max_frames: int | None, arm: bool
) -> dict[str, Any]:
    frames = held_out.shape[3]
    longest = frames if max_frames is None else max_frames
    sources = c_export.write_sources(source, folder, max_frames=longest)
    rows = held_out[..., : min(frames, longest)]
    compared = c_export.compare(source, folder, rows)
    summary: dict[str, Any] = {
        "student": {name: value for name, value in vars(sources.student).items() if name != "text"},
        "frontend": {name: value for name, value in vars(sources.frontend).items() if name != "text"},
        "to_onnx_int8": None if compared is None else compared.as_json(),
        "arm": _instructions(source, folder, rows[:1]) if arm else [],
    }
    return summary


def _instructions(source: Path, folder: Path, rows: np.ndarray) -> list[dict[str, Any]]:
    """Count one inference, and one second of the frontend, on emulated Cortex-A processors."""
    tools = c_toolchain.prepare("aarch64")
    rate = int(metadata.read(source)["frontend"]["sample_rate_hz"])
    second = build.frontend_input([(0, 0.1 * np.random.default_rng(0).standard_normal(rate))])
    clip = build.student_input(list(rows[:, 0]))
    found = []
    with tempfile.TemporaryDirectory(prefix="ossicle-c-") as scratch:
        for cpu in CPUS:
            flags = (*build.OPTIMISED, f"-mcpu={cpu}", f"-DMOST_SAMPLES={rate}", *c_instructions.MARK_FLAGS)
            counts = []
            for filter_, given in ((build.STUDENT_FILTER, clip), (build.FRONTEND_FILTER, second)):
                program = build.compile_source(
                    build.SOURCES / filter_, folder, Path(scratch) / "program", flags=flags, command=tools.compiler
                )  # fmt: skip
                counts.append(c_instructions.count_program(program, given, cpu))
            student, frontend = counts
            got = np.frombuffer(student.output, np.float32).reshape(1, -1)
            found.append({
                "cpu": cpu, "instructions": student.instructions, "dot": student.dot,
                "load_store": student.load_store, "to_onnx_int8": c_export.likeness(source, rows, got).as_json(),
                "frontend_instructions_per_second": frontend.instructions,
            })  # fmt: skip
    return found


def _table(summary: dict[str, Any]) -> Table:
    student, frontend, compared = summary["student"], summary["frontend"], summary["to_onnx_int8"]
    table = Table(title=f"{summary['label']} as C99", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_row("frames that it takes", f"{student['min_frames']} to {student['max_frames']}")
    table.add_row("weights, bytes of flash", f"{student['weight_bytes']:,}")
    table.add_row("arena, bytes of RAM", f"{student['arena_bytes'] + student['vector_bytes']:,}")
    table.add_row("MACs at the most frames", f"{student['macs']:,}")
    table.add_row("frontend: tables, bytes of flash", f"{frontend['table_bytes']:,}")
    table.add_row("frontend: bytes of RAM", f"{frontend['scratch_bytes'] + frontend['stream_bytes']:,}")
    table.add_row("frontend: floating-point operations a frame", f"{frontend['flops']:,}")
    if compared is None:
        table.add_row("compared with the int8 file", "not compiled: no C compiler")
    else:
        steps = compared["greatest_steps"]
        apart = (
            f"{compared['greatest_difference']:.1e} of the largest" if steps is None else f"{steps:.2f} steps"
        )
        table.add_row(f"equal numbers over {compared['rows']} rows", f"{compared['share_equal']:.2%}")
        table.add_row("greatest difference", apart)
        table.add_row("centred cosine to the int8 file", f"{compared['centred_cosine']:.6f}")
    for entry in summary["arm"]:
        table.add_row(f"executed instructions, {entry['cpu']}", f"{entry['instructions']:,}")
        table.add_row(
            f"frontend, a second of sound, {entry['cpu']}", f"{entry['frontend_instructions_per_second']:,}"
        )
    return table
