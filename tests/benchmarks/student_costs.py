"""The regression gate: sizes and executed ARM instructions of the shipped students against the committed ones.

    make benchmark-gate                                      every student, exit 1 past 2 %
    make benchmark-gate-update                               measure anew and write student_costs.json
    python -m tests.benchmarks.student_costs --only NAME     one student
    python -m tests.benchmarks.student_costs --layers --only NAME        what each layer executes
    python -m tests.benchmarks.student_costs --write FOLDER  files, input and x86's outputs, to be timed elsewhere
    python -m tests.benchmarks.student_costs --native FOLDER compare and time those on this processor (arm64.yml)

Students have seeded weights and hear 64 mels x 251 frames, the demo's window: what a count depends on is the graph,
not what was learnt.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.artifact import write_json
from pipeline.config import ExportConfig, LogMelConfig, StudentConfig
from pipeline.deploy import int8
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.deploy_form import write_deploy_form
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import export_student
from pipeline.errors import OssicleError, near_matches
from pipeline.measure import arm, arm_layers, arm_root, latency, layers, model_cost
from pipeline.measure.arm_cores import core_name
from pipeline.measure.complexity import count_macs, parameter_count
from pipeline.students.checker import Clips, measure_statistics
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student

COMMITTED = Path(__file__).with_name("student_costs.json")
BUILD = Path(__file__).resolve().parents[2] / "build"
CPUS = ("cortex-a72", "cortex-a76")
PRECISIONS = ("fp32", "s8s8")
SHAPE = (1, 1, 64, 251)
SEED = 0
TOLERANCE = 0.02
CALIBRATION_CLIPS = 16
LEAST_COSINE = 0.999
UPDATE = "make benchmark-gate-update, and say in the commit why"


@dataclass(frozen=True)
class Member:
    """A shipped student; attention leaves float32 islands that may round to a neighbouring int8 step."""

    name: str
    has_attention: bool = False


MEMBERS = {
    member.name: member
    for member in (
        Member("cnn4_wide"),
        Member("cp_mobile_128k"),
        Member("micronet_m0"),
        Member("micronet_m3"),
        Member("mn04"),
        Member("mobilevitv2_050", has_attention=True),
    )
}
CHEAPEST = "cnn4_wide"


def build(name: str) -> NormalisedStudent:
    """Return the student with seeded weights and batch statistics, in evaluation mode."""
    torch.manual_seed(SEED)
    student = NormalisedStudent(build_student(StudentConfig(name=name), SHAPE[2]), mean=0.0, std=1.0)
    measure_statistics(student, Clips(SHAPE[2], SEED))
    return student


def network_costs(name: str) -> dict[str, int]:
    """Return parameters and MACs."""
    student = build(name)
    return {"parameters": parameter_count(student), "macs": count_macs(student, torch.zeros(SHAPE))}


def export(name: str, folder: Path) -> dict[str, Path]:
    """Write the student's float32 and S8S8 files into ``folder`` as ``ossicle export`` does, every layer in int8."""
    clips = Clips(SHAPE[2], SEED)
    metadata = ExportMetadata(LogMelConfig(), student=name)
    config = ExportConfig(int8_min_cosine=-1.0, calibration_clips=CALIBRATION_CLIPS)
    student = build(name)
    fp32, deploy = folder / "student_fp32.onnx", folder / "student_deploy.onnx"
    export_student(student, fp32, metadata=metadata)
    rows = clips(2 * CALIBRATION_CLIPS, SHAPE[3]).numpy()
    rewritten = write_deploy_form(
        student, deploy, [rows[:1]], metadata=metadata, opset=config.opset, tolerance=config.parity_atol
    )
    given = CalibrationRows(rows[:CALIBRATION_CLIPS], rows[CALIBRATION_CLIPS:], "dummy clips")
    source = fp32 if rewritten is None else deploy
    int8.quantise(source, folder, rows=given, config=config, metadata=metadata)
    return {precision: folder / f"student_{precision}.onnx" for precision in PRECISIONS}


def value() -> np.ndarray:
    """Return the input that is counted."""
    found: np.ndarray = Clips(SHAPE[2], SEED)(1, SHAPE[3]).numpy()
    return found


def file_costs(
    files: dict[str, Path], cpus: Collection[str] = CPUS, cache: Path | None = None
) -> dict[str, Any]:
    """Return sizes, memory, int8 share and, on each of ``cpus``, instructions and how ARM's output compares."""
    wanted = ("weight_bytes", "peak_activation_bytes", "arena_bytes", "int8_mac_share")
    found: dict[str, Any] = {}
    for precision, path in files.items():
        exact = model_cost.exact_costs(path, value())
        found[precision] = {"file_bytes": path.stat().st_size, **{key: exact[key] for key in wanted}}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        jobs = {
            (precision, cpu): pool.submit(arm.count, path, value(), cpu, cache=cache)
            for precision, path in files.items()
            for cpu in cpus
        }
        for (precision, cpu), job in jobs.items():
            counted = job.result()
            found[precision].setdefault("instructions", {})[cpu] = counted.instructions
            compared = {key: counted.comparison[key] for key in ("equal", "cosine", "max_abs_difference")}
            found[precision].setdefault("arm_equals_x86", {})[cpu] = compared
    return found


def measured(names: Collection[str], *, counted: bool = True) -> dict[str, Any]:
    """Return the record that is committed, of ``names``."""
    students = {}
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="ossicle-gate-") as scratch:
            files = file_costs(export(name, Path(scratch)), CPUS if counted else ())
        students[name] = {**network_costs(name), **files}
    return {
        "schema": "ossicle-student-costs/1",
        "input_shape": list(SHAPE),
        "versions": versions(),
        "students": students,
    }


def versions() -> dict[str, str]:
    """Return what counts and graphs depend on beside this repository."""
    # A build's own suffix (+cpu) changes no graph.
    ours = {name: version(name).partition("+")[0] for name in ("torch", "onnx", "onnxscript")}
    return {**ours, **arm_root.versions()}


def violations(name: str, got: dict[str, Any], committed: dict[str, Any]) -> Iterator[str]:
    """Yield one line for each figure of a student that is more than ``TOLERANCE`` from the committed one."""
    if name not in committed["students"]:
        yield f"{name}: not among the committed figures; {UPDATE}"
        return
    wanted = dict(_flat(committed["students"][name]))
    for key, figure in _flat(got):
        want = wanted.get(key)
        if want is None:
            yield f"{name} {key}: {figure:,} is not among the committed figures; {UPDATE}"
        elif abs(figure - want) > TOLERANCE * abs(want):
            change = figure / want - 1 if want else float("inf")
            less_is_better = "share" not in key
            word = "worse" if (change > 0) == less_is_better else "better"
            yield f"{name} {key}: {want:,} committed, {figure:,} now ({change:+.1%}, {word}); if meant: {UPDATE}"


def disagreements(name: str, got: dict[str, Any]) -> Iterator[str]:
    """Yield one line for each int8 output of ARM that is not x86's.

    A CNN's is equal bit by bit; with attention, whose float32 islands feed int8 layers again, the cosine is 0.999.
    """
    for cpu, compared in got.get("s8s8", {}).get("arm_equals_x86", {}).items():
        near = compared["cosine"] is not None and compared["cosine"] >= LEAST_COSINE
        if not compared["equal"] and not (near and MEMBERS[name].has_attention):
            wanted = f"a cosine of {LEAST_COSINE}" if MEMBERS[name].has_attention else "equal bits"
            off = f"cosine {compared['cosine']}, largest difference {compared['max_abs_difference']}"
            yield f"{name} s8s8: {cpu} differs from x86: {off}; expected {wanted}"


def _flat(student: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for key in ("parameters", "macs"):
        if key in student:
            yield key, student[key]
    for precision in PRECISIONS:
        for key, figure in student.get(precision, {}).items():
            if key == "instructions":
                yield from ((f"{precision} {cpu} instructions", number) for cpu, number in figure.items())
            elif key != "arm_equals_x86":
                yield f"{precision} {key}", figure


def committed() -> dict[str, Any]:
    """Return the committed record."""
    record: dict[str, Any] = json.loads(COMMITTED.read_text(encoding="utf-8"))
    return record


def write_files(names: Collection[str], folder: Path) -> None:
    """Write each student's files, the input, and the outputs that ARM has to give, for ``native`` elsewhere."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / name / "input.npy", value())
        for precision, path in export(name, folder / name).items():
            np.save(folder / name / f"{precision}.npy", arm.x86_reference(path, value()))


def native(folder: Path) -> dict[str, Any]:
    """Return the time of each student of ``write_files`` on this processor, said to be a server's core if it is one.

    Outputs are compared with x86's first; a file that computes something else gets no time.
    """
    students: dict[str, Any] = {}
    for here in sorted(path.parent for path in folder.glob("*/input.npy")):
        given = np.load(here / "input.npy", allow_pickle=False)
        for precision in PRECISIONS:
            path = here / f"student_{precision}.onnx"
            got = latency.run_once(latency.open_session(path), given)
            compared = arm.compare_outputs(got, np.load(here / f"{precision}.npy", allow_pickle=False))
            found = students.setdefault(here.name, {})[precision] = {"comparison": compared}
            if compared["believable"]:
                record = model_cost.time_here(path, given, runs=200, seconds=5.0)
                keys = ("p10_ms", "p50_ms", "p95_ms", "runs", "memory", "before", "after")
                found.update({key: record[key] for key in keys})
    return {
        "schema": "ossicle-student-times/1", "processor": core_name(latency.processor()),
        "details": latency.processor(), "versions": versions(), "students": students,
    }  # fmt: skip


def native_markdown(record: dict[str, Any]) -> str:
    """Return the times as a table whose title names the core."""
    lines = [
        f"Milliseconds a window of {SHAPE[2]} mels x {SHAPE[3]} frames, one thread, on: {record['processor']}",
        "",
        "| student | float32 p50 (p10-p95) | int8 S8S8 p50 (p10-p95) | int8 / float32 | output |",
        "|---|---:|---:|---:|---|",
    ]
    for name, found in record["students"].items():
        times = [found[p].get("p50_ms") for p in PRECISIONS]
        cells = [
            f"{found[p]['p50_ms']:.2f} ({found[p]['p10_ms']:.2f}-{found[p]['p95_ms']:.2f})" if time else "-"
            for p, time in zip(PRECISIONS, times, strict=True)
        ]
        ratio = f"{times[1] / times[0]:.2f}" if all(times) else "-"
        lines.append(
            f"| `{name}` | {cells[0]} | {cells[1]} | {ratio} | {_words(found['s8s8']['comparison'])} |"
        )
    return "\n".join(lines)


def _words(compared: dict[str, Any]) -> str:
    if compared["equal"]:
        return "int8 equals x86 bit for bit"
    if not compared["believable"]:
        return "DIFFERS from x86: not timed"
    return f"int8 has cosine {compared['cosine']:.5f} to x86"


def print_layers(names: Collection[str], cpu: str) -> None:
    """Print what each operator of the students' files executes on ``cpu``, and every layer below it."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="ossicle-layers-") as scratch:
            for precision, path in export(name, Path(scratch)).items():
                found = layers.layers(path, value())
                counted = arm_layers.count(path, value(), cpu).by_layer
                found = [replace(layer, instructions=counted[layer.index]) for layer in found]
                print(layers.markdown(found, f"{name} {precision} on an emulated {cpu}"))


def markdown(record: dict[str, Any]) -> str:
    """Return the committed figures as docs/benchmark.md's table."""
    lines = [
        "| student | parameters | M MACs | flash KB, float32 / int8 | arena KB | A72 M instr. | ratio | A76 M instr. "
        "| ratio | int8 = x86 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, found in record["students"].items():
        fp32, s8s8 = found["fp32"], found["s8s8"]
        cells = [f"`{name}`", f"{found['parameters']:,}", f"{found['macs'] / 1e6:.2f}"]
        cells += [
            f"{fp32[key] / 1024:,.0f} / {s8s8[key] / 1024:,.0f}" for key in ("file_bytes", "arena_bytes")
        ]
        for cpu in CPUS:
            pair = [part["instructions"][cpu] for part in (fp32, s8s8)]
            cells += [f"{pair[0] / 1e6:.2f} / {pair[1] / 1e6:.2f}", f"{pair[1] / pair[0]:.2f}"]
        compared = s8s8["arm_equals_x86"].values()
        least = min(c["cosine"] for c in compared)
        cells.append("equal bits" if all(c["equal"] for c in compared) else f"cosine {least:.5f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 all within the gate, 1 not, 2 cannot be measured here."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.student_costs")
    parser.add_argument("--only", action="append", metavar="NAME", help="this student alone (repeatable)")
    parser.add_argument("--update", action="store_true", help="write the committed file anew")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="only write files and x86's outputs")
    parser.add_argument(
        "--native", type=Path, metavar="FOLDER", help="time what --write wrote on this processor"
    )
    parser.add_argument(
        "--layers", action="store_true", help=f"print executed instructions by layer, {CPUS[-1]}"
    )
    parser.add_argument("--markdown", action="store_true", help="print the committed table of the docs")
    options = parser.parse_args(arguments)
    names = options.only or list(MEMBERS)
    for name in names:
        if name not in MEMBERS:
            print(f"no shipped student is called {name!r}: {near_matches(name, MEMBERS)}", file=sys.stderr)
            return 2
    if options.markdown:
        print(markdown(committed()))
        return 0
    try:
        if options.layers:
            print_layers(names, CPUS[-1])
            return 0
        if options.write:
            write_files(names, options.write)
            return 0
        if options.native:
            record = native(options.native)
            write_json(BUILD / "student-times.json", record)
            print(native_markdown(record))
            compared = [
                part["comparison"] for found in record["students"].values() for part in found.values()
            ]
            return 0 if compared and all(one["believable"] for one in compared) else 1
        return _gate(names, update=options.update)
    except OssicleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _gate(names: Collection[str], *, update: bool) -> int:
    before = committed() if COMMITTED.is_file() else {"students": {}, "versions": {}}
    here = versions()
    changed = [
        f"{k} {before['versions'].get(k)} -> {v}" for k, v in here.items() if before["versions"].get(k) != v
    ]
    if changed and not update:
        print("the committed figures are of other versions: " + ", ".join(changed), file=sys.stderr)
        print("install those of constraints.txt, or " + UPDATE, file=sys.stderr)
    record = measured(names)
    wrong = [line for name in names for line in disagreements(name, record["students"][name])]
    if update:
        # Read again: another process may have measured other students in the meantime.
        kept = committed()["students"] if COMMITTED.is_file() and not changed else {}
        together = {**kept, **record["students"]}
        record["students"] = {name: together[name] for name in MEMBERS if name in together}
        write_json(COMMITTED, record)
        print(f"written: {COMMITTED}")
    else:
        wrong += [line for name in names for line in violations(name, record["students"][name], before)]
    for line in wrong:
        print(line)
    print(f"{len(names)} students, {len(wrong)} figures past the gate of {TOLERANCE:.0%}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
