"""Time one ONNX model on one thread. Needs numpy and onnxruntime alone: boards and QEMU run this very file.

    python latency.py model.onnx input.npy --json

It prints one JSON object: percentiles in milliseconds, a hash of the output, and the processor it ran on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

MINIMUM_RUNS = 5


def open_session(
    model: Path, *, threads: int = 1, int8_everywhere: bool = False
) -> onnxruntime.InferenceSession:
    """Return a CPU session of ``model`` with ``threads`` threads.

    Args:
        model: an ONNX file.
        threads: threads inside an operator; operators run one after the other.
        int8_everywhere: run signed QDQ nodes in int8 on x86 too, as ARM does (slow: to compare outputs).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    if int8_everywhere:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def run_once(session: onnxruntime.InferenceSession, value: np.ndarray) -> np.ndarray:
    """Return the first output of ``session`` for ``value`` as its only input."""
    name = session.get_inputs()[0].name
    return np.asarray(session.run([session.get_outputs()[0].name], {name: value})[0])


def time_calls(call: Callable[[], Any], *, warmups: int, runs: int, seconds: float) -> dict[str, Any]:
    """Return p10, p50 and p95 in milliseconds over ``runs`` calls, or as many as fit into ``seconds``.

    At least ``MINIMUM_RUNS`` are timed, however long one takes; warm-ups stop after a quarter of ``seconds``.
    """
    started = time.perf_counter()
    for done in range(warmups):
        call()
        if done and time.perf_counter() - started > seconds / 4:
            break
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < runs and (len(times) < MINIMUM_RUNS or time.perf_counter() - started < seconds):
        before = time.perf_counter()
        call()
        times.append((time.perf_counter() - before) * 1e3)
    p10, p50, p95 = (float(v) for v in np.percentile(times, (10, 50, 95)))
    return {"p10_ms": p10, "p50_ms": p50, "p95_ms": p95, "runs": len(times)}


def mark_inferences(
    session: onnxruntime.InferenceSession, value: np.ndarray, *, warmups: int, runs: int
) -> None:
    """Run ``runs`` inferences, each between two ``getppid`` system calls: the plugin's markers."""
    for _ in range(warmups):
        run_once(session, value)
    for _ in range(runs):
        os.getppid()
        run_once(session, value)
        os.getppid()


def array_hash(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and bytes."""
    contiguous = np.ascontiguousarray(array)
    head = f"{contiguous.dtype.str}{contiguous.shape}".encode()
    return hashlib.sha256(head + contiguous.tobytes()).hexdigest()


def processor() -> dict[str, Any]:
    """Return what is known of the processor: name, ARM part, features, governor; absent ones are null."""
    fields: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, text = line.partition(":")
        fields.setdefault(key.strip().lower(), text.strip())
    return {
        "machine": platform.machine(),
        "name": fields.get("model name") or _read("/proc/device-tree/model"),
        "implementer": fields.get("cpu implementer"),
        "part": fields.get("cpu part"),
        "features": sorted((fields.get("features") or fields.get("flags") or "").split()),
        "cores": os.cpu_count(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def condition() -> dict[str, Any]:
    """Return what may disturb a timing now: load, temperature, throttling; absent ones are null."""
    temperature = _read("/sys/class/thermal/thermal_zone0/temp")
    try:
        throttled = subprocess.run(
            ["vcgencmd", "get_throttled"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=5,
            check=True,
        ).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        throttled = None  # only Raspberry Pi OS has the program
    return {
        "load_1min": os.getloadavg()[0],
        "temperature_celsius": int(temperature) / 1000 if temperature and temperature.isdigit() else None,
        "throttled": throttled.strip().split("=")[-1] if throttled else None,
    }


def measure(
    model: Path,
    value: np.ndarray,
    *,
    warmups: int = 20,
    runs: int = 200,
    seconds: float = 5.0,
    threads: int = 1,
    int8_everywhere: bool = False,
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the timing record of ``model`` on ``value`` and its output."""
    session = open_session(model, threads=threads, int8_everywhere=int8_everywhere)
    output = run_once(session, value)
    before = condition()
    record = time_calls(lambda: run_once(session, value), warmups=warmups, runs=runs, seconds=seconds)
    record.update(_description(value, output), threads=threads, before=before, after=condition())
    return record, output


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; print one JSON object (``--json``) or one line."""
    parser = argparse.ArgumentParser(description="Time one ONNX model on one thread.")
    parser.add_argument("model", type=Path)
    parser.add_argument("input", type=Path, help="the model's input as .npy")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", type=Path, help="write the output here as .npy")
    parser.add_argument("--warmups", type=int, default=20)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for at most this long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pin", action="store_true", help="stay on one core: the last one allowed")
    parser.add_argument("--int8-everywhere", action="store_true", help="x86: run signed QDQ nodes in int8")
    parser.add_argument(
        "--mark", action="store_true", help="mark each inference by a system call instead of timing"
    )
    options = parser.parse_args(arguments)
    if options.pin:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    value = np.load(options.input)
    if options.mark:
        session = open_session(options.model, threads=options.threads)
        output = run_once(session, value)
        mark_inferences(session, value, warmups=options.warmups, runs=options.runs)
        record = {**_description(value, output), "runs": options.runs}
    else:
        record, output = measure(
            options.model, value, warmups=options.warmups, runs=options.runs, seconds=options.seconds,
            threads=options.threads, int8_everywhere=options.int8_everywhere,
        )  # fmt: skip
    if options.output is not None:
        np.save(options.output, output)
    if options.json:
        print(json.dumps(record))
    elif options.mark:
        print("{runs} inferences, output {output_sha256}".format(**record))
    else:
        print("p10 {p10_ms:.3f}  p50 {p50_ms:.3f}  p95 {p95_ms:.3f} ms over {runs} runs".format(**record))
    return 0


def _description(value: np.ndarray, output: np.ndarray) -> dict[str, Any]:
    return {
        "input_shape": list(value.shape),
        "output_sha256": array_hash(output),
        "processor": processor(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
