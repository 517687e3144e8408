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
    model: Path, *, threads: int = 1, int8_everywhere: bool = False, profile: str | None = None
) -> onnxruntime.InferenceSession:
    """Return a CPU session of ``model`` with ``threads`` threads.

    Args:
        model: an ONNX file.
        threads: threads inside an operator; operators run one after the other.
        int8_everywhere: run signed QDQ nodes in int8 on x86 too, as ARM does (slow: to compare outputs).
        profile: begin of the name of ONNX Runtime's profile, written by ``end_profiling``.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    if int8_everywhere:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
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
    """Return what is known of the core that this process may run on: name, ARM part, features, governor.

    Of several cores it is the last of the affinity, which is the one that ``--pin`` takes. Absent fields are null.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    core = allowed[-1]
    fields = _cpuinfo(core)
    frequency = f"/sys/devices/system/cpu/cpu{core}/cpufreq"
    return {
        "machine": platform.machine(),
        "board": _read("/proc/device-tree/model"),
        "name": fields.get("model name") or _read("/proc/device-tree/model"),
        "implementer": fields.get("cpu implementer"),
        "part": fields.get("cpu part"),
        "features": sorted((fields.get("features") or fields.get("flags") or "").split()),
        "cores": os.cpu_count(),
        "core": core,
        "affinity": allowed,
        "governor": _read(f"{frequency}/scaling_governor"),
        "max_frequency_khz": _whole(_read(f"{frequency}/cpuinfo_max_freq")),
    }


def condition() -> dict[str, Any]:
    """Return what may disturb a timing now: load, temperatures, clock, throttling; absent ones are null."""
    zones: dict[str, float] = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        degrees = _whole(_read(f"{zone}/temp"))
        if degrees is not None:
            zones[f"{zone.name.removeprefix('thermal_zone')} {_read(f'{zone}/type') or ''}".strip()] = (
                degrees / 1000
            )
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
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
    cpu = f"/sys/devices/system/cpu/cpu{core}"
    return {
        "load_1min": os.getloadavg()[0],
        "temperature_celsius": max(zones.values(), default=None),
        "zones_celsius": zones,
        "frequency_khz": _whole(_read(f"{cpu}/cpufreq/scaling_cur_freq")),
        "throttled": throttled.strip().split("=")[-1] if throttled else None,
        "throttle_count": _whole(_read(f"{cpu}/thermal_throttle/core_throttle_count")),
    }


def resident_bytes() -> dict[str, int | None]:
    """Return this process's resident memory now and its peak so far (``VmRSS``, ``VmHWM``); null without /proc."""
    lines = dict(
        line.split(":", 1) for line in (_read("/proc/self/status") or "").splitlines() if ":" in line
    )

    def size(name: str) -> int | None:
        return int(lines[name].split()[0]) * 1024 if name in lines else None

    return {"now_bytes": size("VmRSS"), "peak_bytes": size("VmHWM")}


def reset_peak() -> bool:
    """Let ``VmHWM`` begin again at what is resident now; False where the kernel does not offer it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


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
    """Return the timing record of ``model`` on ``value`` and its output.

    ``memory``: resident bytes before the model is opened, once it is, and the peak; ``delta_bytes`` is what the
    runtime's session took in all (weights, packed copies, arena, code pages), null without ``/proc``. Where
    ``peak_reset`` is false the peak may be that of the imports.
    """
    peak_reset = reset_peak()
    baseline = resident_bytes()["now_bytes"]
    session = open_session(model, threads=threads, int8_everywhere=int8_everywhere)
    opened = resident_bytes()["now_bytes"]
    output = run_once(session, value)
    peak = resident_bytes()["peak_bytes"]
    before = condition()
    record = time_calls(lambda: run_once(session, value), warmups=warmups, runs=runs, seconds=seconds)
    record.update(_description(value, output), threads=threads, before=before, after=condition())
    delta = peak - baseline if peak is not None and baseline is not None else None
    record["memory"] = {
        "baseline_bytes": baseline, "opened_bytes": opened, "peak_bytes": peak, "delta_bytes": delta,
        "peak_reset": peak_reset,
    }  # fmt: skip
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
    parser.add_argument("--profile", help="with --mark: write ONNX Runtime's profile under this name's begin")
    parser.add_argument("--once", action="store_true", help="run once and time nothing")
    options = parser.parse_args(arguments)
    if options.pin:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    value = np.load(options.input)
    if options.mark:
        session = open_session(options.model, threads=options.threads, profile=options.profile)
        output = run_once(session, value)
        mark_inferences(session, value, warmups=options.warmups, runs=options.runs)
        record = {**_description(value, output), "runs": options.runs}
        if options.profile is not None:
            record["profile"] = session.end_profiling()
    elif options.once:
        output = run_once(open_session(options.model, threads=options.threads), value)
        record = _description(value, output)
    else:
        record, output = measure(
            options.model, value, warmups=options.warmups, runs=options.runs, seconds=options.seconds,
            threads=options.threads, int8_everywhere=options.int8_everywhere,
        )  # fmt: skip
    if options.output is not None:
        np.save(options.output, output)
    if options.json:
        print(json.dumps(record))
    elif options.mark or options.once:
        print("output {output_sha256}".format(**record))
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


def _cpuinfo(core: int) -> dict[str, str]:
    """Return the fields of one core of ``/proc/cpuinfo``; ARM's last block may be of the whole board."""
    blocks: list[dict[str, str]] = []
    for text in (_read("/proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
        blocks.append({key.strip().lower(): value.strip() for key, _, value in pairs})
    return next(
        (block for block in blocks if block.get("processor") == str(core)), blocks[0] if blocks else {}
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
