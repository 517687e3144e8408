"""Executed aarch64 instructions of the C form, by the plugin that counts ONNX Runtime's. Not a latency."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import MeasurementError
from pipeline.measure.arm_root import CPUS, prepare

TIMEOUT_SECONDS = 600
# What a program is compiled with so that it marks what is counted.
MARK_FLAGS = ("-D_POSIX_C_SOURCE=199309L", "-DOSSICLE_MARK")


@dataclass(frozen=True)
class CCount:
    """What one marked piece of a C program executed: of the runs, the fewest.

    Attributes:
        cpu: emulated; ``instructions``: executed; ``dot``, ``load_store``: of these.
        output: what the program wrote.
    """

    cpu: str
    instructions: int
    dot: int
    load_store: int
    output: bytes


def count_program(program: Path, given: bytes, cpu: str, *extra: str, cache: Path | None = None) -> CCount:
    """Count what an aarch64 filter executes between its markers.

    Args:
        program: compiled with :data:`MARK_FLAGS`.
        given: its input file.
        cpu: a name of ``arm_root.CPUS``.
        extra: arguments after input and output.
        cache: folder of downloads.

    Raises:
        MissingDependencyError: QEMU cannot be had here.
        MeasurementError: the program failed.
    """
    if cpu not in CPUS:
        raise MeasurementError("no such emulated processor", expected=", ".join(CPUS), got=cpu)
    with tempfile.TemporaryDirectory(prefix="ossicle-c-arm-") as scratch:
        folder = Path(scratch)
        (folder / "input.bin").write_bytes(given)
        done = subprocess.run(
            [*prepare(cache).emulator(cpu), str(program), "input.bin", "output.bin", *extra],
            cwd=folder, env={"INSN_OUT": "counts.json", "LC_ALL": "C"},
            capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        if done.returncode != 0 or not (folder / "counts.json").is_file():
            lines = done.stderr.strip().splitlines()
            raise MeasurementError(
                f"{program.name} failed on the emulated {cpu} (exit code {done.returncode})",
                got=lines[-1] if lines else "no message",
            )
        classes = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        output = (folder / "output.bin").read_bytes()
    # Every other interval lies between two marked pieces.
    marked = {name: values[0::2] for name, values in classes.items()}
    if not marked["instructions"]:
        raise MeasurementError(f"{program.name} marks nothing", expected=" ".join(MARK_FLAGS))
    best = marked["instructions"].index(min(marked["instructions"]))
    return CCount(
        cpu, marked["instructions"][best], marked["dot"][best], marked["load_store"][best], output
    )  # fmt: skip
