"""ExecuTorch from the side of Ossicle: writes the worker's folder, starts it in its environment, reads what it made."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from pipeline import artifact
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.onnx_export import quiet_exporter
from pipeline.deploy.runtimes.targets import Target
from pipeline.deploy.runtimes.vela import NpuEstimate, read_estimate
from pipeline.errors import OssicleError

WORKER = Path(__file__).with_name("executorch_worker.py")


@dataclass(frozen=True)
class Program:
    """One ``.pte`` file and what it gives.

    Attributes:
        name: ``fp32`` or ``int8``.
        path: the file.
        embeddings: of the held-out rows, (rows, dim).
        ran: where these were computed.
        delegates: subgraphs that XNNPACK or the NPU took, of ``delegated`` operators; ``left``: others, by name.
        estimate: Vela's, of an NPU's program; None where the graph fell apart into several, which it cannot sum.
        versions: of the environment.
    """

    name: str
    path: Path
    embeddings: Float[np.ndarray, "rows dim"]
    ran: str
    delegates: int
    delegated: int
    left: dict[str, int]
    estimate: NpuEstimate | None
    versions: dict[str, str]


def convert_student(
    student: nn.Module,
    folder: Path,
    rows: CalibrationRows,
    *,
    python: Path,
    target: Target,
) -> list[Program]:
    """Write a student as ``student_<name>.pte`` files into ``folder``.

    Args:
        student: takes (1, 1, mels, frames) float32.
        folder: where the files go.
        rows: calibration and held-out rows; their frames are the files' one length.
        python: interpreter of the environment.
        target: an Ethos-U to compile for; without one XNNPACK on Cortex-A, in float and in int8.

    Raises:
        OssicleError: torch or ExecuTorch refuses the network; its last line is given.
    """
    student.eval()
    accelerator, system = target.accelerator, target.system
    with tempfile.TemporaryDirectory(prefix="ossicle-executorch-") as scratch:
        work = Path(scratch)
        example = torch.from_numpy(rows.calibration[:1])
        with quiet_exporter(), torch.no_grad():
            torch.export.save(torch.export.export(student, (example,)), str(work / "program.pt2"))
        np.save(work / "calibration.npy", rows.calibration)
        np.save(work / "held_out.npy", rows.held_out)
        job = {
            "accelerator": accelerator,
            "system": system[0] if system else None,
            "memory_mode": system[1] if system else None,
        }
        artifact.write_json(work / "job.json", job)
        # -P: this folder, where a module is called executorch, is not searched for modules.
        _run([str(python), "-P", str(WORKER), str(work)], work, accelerator or "XNNPACK")
        result: dict[str, Any] = json.loads((work / "result.json").read_text(encoding="utf-8"))
        estimate = None
        # Of several subgraphs each overwrites what Vela said of the one before.
        if accelerator is not None and result["files"][0]["delegates"] == 1:
            estimate = read_estimate(work / "vela")
        found = []
        for entry in result["files"]:
            path = folder / f"student_{entry['name']}.pte"
            artifact.write_bytes(path, (work / f"{entry['name']}.pte").read_bytes())
            embeddings = np.load(work / f"{entry['name']}.npy", allow_pickle=False)
            found.append(
                Program(
                    entry["name"],
                    path,
                    embeddings,
                    entry["ran"],
                    entry["delegates"],
                    entry["delegated"],
                    entry["left"],
                    estimate,
                    result["versions"],
                )
            )
    return found


def _run(command: list[str], work: Path, target: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=work, env={**kept, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode != 0 or not (work / "result.json").is_file():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise OssicleError(
            f"ExecuTorch does not write this student for {target}",
            expected="a program of its operators",
            got=lines[-1] if lines else f"exit status {done.returncode}",
            run="another --to, or another student (docs/runtimes.md)",
        )
