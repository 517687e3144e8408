"""Executed aarch64 instructions of one inference on an emulated Cortex-A; whether ARM computes what x86 does.

Not a latency: QEMU has no caches, no pipelines and no memory stalls. The count repeats to some parts in
100,000, so it can be gated; emulated time means nothing and is never reported.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifact import file_digest, write_json
from pipeline.errors import MeasurementError
from pipeline.measure import latency
from pipeline.measure.arm_root import CPUS, ArmRoot, default_cache, prepare, versions

WARMUPS = 2
TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class ArmCount:
    """Executed instructions of one inference: of the run that executed the fewest.

    Attributes:
        cpu: a name of ``arm_root.CPUS``, which says what it is and what stands in for it.
        instructions: all executed instructions of one ``session.run``.
        dot, mmla, fmla, load_store, sve_sme: of these, SDOT/UDOT, SMMLA/UMMLA/USMMLA, FMLA (4 float32
            lanes each), loads and stores, SVE or SME.
        spread: (largest - smallest) / smallest over the runs.
        runs: inferences that were counted.
        comparison: ARM's output against x86's (see ``compare_outputs``).
    """

    cpu: str
    instructions: int
    dot: int
    mmla: int
    fmla: int
    load_store: int
    sve_sme: int
    spread: float
    runs: int
    comparison: dict[str, Any]


def compare_outputs(got: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Return how ``got`` differs from ``reference`` (both ``(batch, dim)`` or any one shape).

    Returns:
        ``equal`` (bit for bit), ``max_abs_difference``, ``cosine`` (least of the batch) and ``believable``:
        equal, or cosine at least 0.999 (int8: float32 islands may round to the neighbouring int8 step).
    """
    if got.shape != reference.shape or not np.isfinite(got).all():
        return {"equal": False, "max_abs_difference": None, "cosine": None, "believable": False}
    a = got.reshape(len(got), -1).astype(np.float64)
    b = reference.reshape(len(reference), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    equal = bool(np.array_equal(got, reference))
    cosines = np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0), float(equal))
    cosine = float(cosines.min())
    return {
        "equal": equal,
        "max_abs_difference": float(np.abs(a - b).max()),
        "cosine": cosine,
        "believable": equal or cosine >= 0.999,
    }


def revision(cpu: str) -> dict[str, str]:
    """Return what tells a processor's counts from those of an earlier revision of it; nothing for the first."""
    variant = CPUS[cpu].variant if cpu in CPUS else "0x0"
    return {} if variant == "0x0" else {"variant": variant}


def x86_reference(model: Path, value: np.ndarray) -> np.ndarray:
    """Return the output that ARM must give: on x86, with signed QDQ nodes run in int8 as ARM runs them."""
    return latency.run_once(latency.open_session(model, int8_everywhere=True), value)


def count(
    model: Path, value: np.ndarray, cpu: str, *, runs: int = 5, cache: Path | None = None, reuse: bool = True
) -> ArmCount:
    """Count the executed aarch64 instructions of one inference of ``model`` on ``value``.

    Args:
        model: an ONNX file with one input.
        value: its input, any shape and dtype that the model takes.
        cpu: a name of ``arm_root.CPUS``.
        runs: inferences; the smallest count is reported.
        cache: folder of downloads; the root is built there at first use.
        reuse: take the count from the cache if this model, input and root were counted before.

    Raises:
        MissingDependencyError: apt or a C compiler is absent.
        MeasurementError: the guest failed or ran too long.
    """
    root = prepare(cache)
    work = {
        "model": file_digest(model),
        "input": latency.array_hash(value),
        "cpu": cpu,
        "runs": runs,
        **versions(),
        **revision(cpu),
    }
    key = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()[:24]
    known = (cache or default_cache()) / "arm-counts" / f"{key}.json"
    if reuse and known.is_file():
        return ArmCount(**json.loads(known.read_text(encoding="utf-8")))
    classes, output = _emulate(root, model, value, cpu, runs)
    per_run = {name: counts[0::2][:runs] for name, counts in classes.items()}
    totals = per_run["instructions"]
    best = totals.index(min(totals))
    found = ArmCount(
        cpu=cpu,
        **{name: counts[best] for name, counts in per_run.items()},
        spread=(max(totals) - min(totals)) / min(totals),
        runs=runs,
        comparison=compare_outputs(output, x86_reference(model, value)),
    )
    write_json(known, asdict(found))
    return found


def _emulate(
    root: ArmRoot, model: Path, value: np.ndarray, cpu: str, runs: int
) -> tuple[dict[str, list[int]], np.ndarray]:
    """Run the latency runner in QEMU; return counts between the last ``2 runs`` markers, and the output."""
    with guest(root, model, value, cpu, runs) as folder:
        classes = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        output = np.load(folder / "output.npy")
    expected = 2 * runs - 1
    if any(len(counts) < expected for counts in classes.values()):
        raise MeasurementError(
            "the counting plugin saw too few markers", expected=expected, got=len(classes["instructions"])
        )
    return {name: counts[-expected:] for name, counts in classes.items()}, output


@contextmanager
def guest(
    root: ArmRoot,
    model: Path,
    value: np.ndarray,
    cpu: str,
    runs: int,
    *options: str,
    plugin: str = "plugin.so",
) -> Iterator[Path]:
    """Run marked inferences on the emulated ``cpu`` and give the folder that they wrote.

    It holds ``counts.json`` (the plugin's), ``output.npy``, and what further ``options`` of the runner write.

    Raises:
        MeasurementError: no such processor, or the guest failed or ran too long.
    """
    if cpu not in CPUS:
        raise MeasurementError("no such emulated processor", expected=", ".join(CPUS), got=cpu)
    with tempfile.TemporaryDirectory(prefix="ossicle-arm-") as scratch:
        folder = Path(scratch)
        # Copies under fixed names: the length of the guest's arguments moves its stack too.
        shutil.copyfile(latency.__file__, folder / "latency.py")
        shutil.copyfile(model, folder / "model.onnx")
        np.save(folder / "input.npy", value)
        runner = [
            "latency.py", "model.onnx", "input.npy", "--mark", "--json",
            "--runs", str(runs), "--warmups", str(WARMUPS), "--output", "output.npy", *options,
        ]  # fmt: skip
        try:
            # A fixed environment: its size moves the guest's stack, and alignment moves the count.
            environment = {"INSN_OUT": "counts.json", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                root.command(cpu, *runner, plugin=plugin), cwd=folder, env=environment,
                capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(
                f"the emulated {cpu} did not finish {model.name}",
                expected=f"within {TIMEOUT_SECONDS} s",
                got="stopped",
            ) from error
        if done.returncode != 0 or not (folder / "counts.json").is_file():
            lines = done.stderr.strip().splitlines()
            raise MeasurementError(
                f"{model.name} failed on the emulated {cpu} (exit code {done.returncode})",
                got=lines[-1] if lines else "no message",
            )
        yield folder
