"""Vela, Arm's compiler for Ethos-U: an int8 TFLite file becomes commands for the NPU, and an estimate of their cost."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import artifact
from pipeline.deploy.runtimes.targets import Target
from pipeline.errors import MissingDependencyError, OssicleError

KIB = 1024


@dataclass(frozen=True)
class NpuEstimate:
    """What Vela's model of the NPU says one inference costs: an estimate, measured on no board.

    Attributes:
        accelerator: e.g. ``Ethos_U55_128``; ``system``: its clock and memories; ``memory_mode``: who holds what.
        clock_hz: of the NPU.
        cycles: of one inference.
        milliseconds: of one inference.
        sram_bytes: greatest use of on-chip memory.
        flash_bytes: weights and commands in flash, on chip and off.
        dram_bytes: what lies in DRAM, where the system has it: weights and what SRAM does not hold.
        macs: multiply-accumulates as Vela counts them.
        npu_operators, cpu_operators: where the graph's operators run.
        kind: always ``estimate``.
    """

    accelerator: str
    system: str
    memory_mode: str
    clock_hz: float
    cycles: int
    milliseconds: float
    sram_bytes: int
    flash_bytes: int
    dram_bytes: int
    macs: int
    npu_operators: int
    cpu_operators: int
    kind: str = "estimate"

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def compile_tflite(path: Path, folder: Path, target: Target) -> NpuEstimate:
    """Write ``<name>_<accelerator>.tflite`` and ``.layers.csv`` of ``path`` into ``folder``; return the estimate.

    Args:
        path: an int8 file, input and output int8 too.
        folder: where the results go.
        target: names an NPU.

    Raises:
        MissingDependencyError: Vela is not installed.
        OssicleError: Vela refuses the file or the configuration.
    """
    if importlib.util.find_spec("ethosu") is None:
        raise MissingDependencyError("Vela is not installed", run="pip install 'ossicle[npu]'")
    accelerator, system = target.accelerator, target.system
    if accelerator is None or system is None:
        raise OssicleError(f"{target.name} names no NPU", expected="ethos-u55-128 and the like")
    with tempfile.TemporaryDirectory(prefix="ossicle-vela-") as scratch:
        command = [
            sys.executable, "-m", "ethosu.vela", str(path.absolute()), "--output-dir", scratch,
            "--accelerator-config", accelerator, "--system-config", system[0], "--memory-mode", system[1],
            "--verbose-performance",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
        made = Path(scratch)
        if done.returncode != 0 or not list(made.glob("*_summary_*.csv")):
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            errors = [line for line in lines if "error" in line.lower()] or lines[-2:] or ["no message"]
            raise OssicleError(
                f"Vela does not compile {path.name}", got="; ".join(errors[:2]),
                expected=f"a file for {accelerator} under {system[0]}, {system[1]}",
                run="--system-config and --memory-mode: names as Vela's vela.ini has them",
            )  # fmt: skip
        estimate = read_estimate(made)
        stem = f"{path.stem}_{accelerator}"
        for pattern, suffix in (("*_vela.tflite", ".tflite"), ("*_per-layer.csv", ".layers.csv")):
            for found in made.glob(pattern):
                artifact.write_bytes(folder / (stem + suffix), found.read_bytes())
    return estimate


def read_estimate(folder: Path) -> NpuEstimate:
    """Return the estimate among the files that Vela left in ``folder``.

    Raises:
        OssicleError: there is none.
    """
    summaries = sorted(folder.rglob("*_summary_*.csv"))
    if len(summaries) != 1:
        raise OssicleError("Vela left no summary", expected="one *_summary_*.csv", got=len(summaries))
    with summaries[0].open(newline="", encoding="utf-8") as file:
        row = list(csv.DictReader(file))[-1]
    layers = sorted(folder.rglob("*_per-layer.csv"))
    targets: list[str] = []
    if layers:
        with layers[0].open(newline="", encoding="utf-8") as file:
            targets = [line["Target"] for line in csv.DictReader(file)]
    flash = sum(float(row[f"{place}_flash_memory_used"]) for place in ("on_chip", "off_chip"))
    return NpuEstimate(
        accelerator=row["accelerator_configuration"],
        system=row["system_config"],
        memory_mode=row["memory_mode"],
        clock_hz=float(row["core_clock"]),
        cycles=int(float(row["cycles_total"])),
        milliseconds=1000 * float(row["inference_time"]),
        sram_bytes=round(KIB * float(row["sram_memory_used"])),
        flash_bytes=round(KIB * flash),
        dram_bytes=round(KIB * float(row["dram_memory_used"])),
        macs=int(float(row["nn_macs"])),
        npu_operators=targets.count("NPU"),
        cpu_operators=targets.count("CPU"),
    )
