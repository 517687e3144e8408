"""Time ONNX files on a real board by ssh. The board needs python3, numpy and onnxruntime, nothing of ours.

A board's output is compared with x86's before its time is believed; a model that answers otherwise gets none.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, MeasurementError, MissingDependencyError
from pipeline.measure import latency
from pipeline.measure.arm import compare_outputs, x86_reference

_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15")
_PROBE = (
    "python3 -c 'import json, platform, numpy, onnxruntime; "
    "v = [platform.machine(), platform.python_version(), numpy.__version__, onnxruntime.__version__]; "
    "print(json.dumps(v))'"
)
_TIMES = ("p10_ms", "p50_ms", "p95_ms", "runs")


def time_on_board(
    host: str, models: Mapping[str, tuple[Path, np.ndarray]], *, runs: int = 200, seconds: float = 10.0
) -> dict[str, Any]:
    """Time every model on the board and return what it is and what it took.

    Args:
        host: ``user@board``, as ssh takes it; a key must let us in without a password.
        models: name to (ONNX file, input).
        runs: inferences timed at most; seconds: time spent on one model at most.

    Returns:
        ``{"host", "machine", "versions": {...}, "models": {name: record}}``. A record has ``comparison`` (see
        ``arm.compare_outputs``) and, only where that is believable, ``p10_ms p50_ms p95_ms`` and the board's
        ``processor``, ``before`` and ``after``; else ``not_measured`` says why.

    Raises:
        ConfigError: ``host`` is no host name.
        MissingDependencyError: python3, numpy or onnxruntime is absent on the board, or ssh here.
        MeasurementError: the board cannot be reached, or a transfer failed.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@:%\[\]-]*", host):
        raise ConfigError("that is no host that ssh can reach", expected="user@board", got=host)
    machine, python, numpy_version, runtime = _probe(host)
    folder = _ssh(host, "mktemp -d").strip()
    if not re.fullmatch(r"/[A-Za-z0-9_./-]+", folder):
        raise MeasurementError(f"{host} gave no temporary folder", expected="a path", got=folder)
    try:
        records = _time_all(host, folder, models, runs, seconds)
    finally:
        _ssh(host, f"rm -rf {folder}")
    return {
        "host": host,
        "machine": machine,
        "versions": {"python": python, "numpy": numpy_version, "onnxruntime": runtime},
        "models": records,
    }


def _time_all(
    host: str, folder: str, models: Mapping[str, tuple[Path, np.ndarray]], runs: int, seconds: float
) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="ossicle-board-") as scratch:
        here = Path(scratch)
        _scp([latency.__file__], f"{host}:{folder}/latency.py")
        for index, (name, (model, value)) in enumerate(models.items()):
            np.save(here / f"{index}.npy", value)
            _scp([str(model.resolve())], f"{host}:{folder}/{index}.onnx")
            _scp([str(here / f"{index}.npy")], f"{host}:{folder}/{index}.npy")
            printed = _ssh(
                host,
                f"cd {folder} && python3 latency.py {index}.onnx {index}.npy --json --pin "
                f"--output output{index}.npy --runs {runs} --seconds {seconds}",
                timeout=300 + 20 * seconds,
            )
            _scp([f"{host}:{folder}/output{index}.npy"], str(here / f"output{index}.npy"))
            got = np.load(here / f"output{index}.npy", allow_pickle=False)
            records[name] = _judge(_parse(host, printed), got, x86_reference(model, value))
    return records


def _judge(record: dict[str, Any], got: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Keep the times of ``record`` only if the board computed what x86 computes."""
    comparison = compare_outputs(got, reference)
    if record["output_sha256"] != latency.array_hash(got):
        comparison["believable"] = False
    if comparison["believable"]:
        return {**record, "comparison": comparison}
    kept = {key: value for key, value in record.items() if key not in _TIMES}
    why = f"the board's output differs from x86's (cosine {comparison['cosine']})"
    return {**kept, "comparison": comparison, "not_measured": why}


def _probe(host: str) -> list[str]:
    done = _run(["ssh", *_OPTIONS, host, _PROBE], 60)
    if done.returncode == 255:
        raise MeasurementError(
            f"cannot reach {host}", expected="ssh without a password", got=_last(done.stderr),
            run=f"ssh-copy-id {host}, then ssh {host} true",
        )  # fmt: skip
    if done.returncode != 0:
        raise MissingDependencyError(
            f"{host} cannot run the benchmark", expected="python3 with numpy and onnxruntime",
            got=_last(done.stderr), run=f"ssh {host} python3 -m pip install onnxruntime",
        )  # fmt: skip
    found = _parse(host, done.stdout)
    return [str(entry) for entry in found]


def _parse(host: str, printed: str) -> Any:
    # A login script may print before the runner does; the record is the last line.
    try:
        return json.loads(printed.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise MeasurementError(
            f"{host} printed no record", expected="one JSON line", got=printed[-200:]
        ) from error


def _ssh(host: str, command: str, timeout: float = 60) -> str:
    done = _run(["ssh", *_OPTIONS, host, command], timeout)
    if done.returncode != 0:
        raise MeasurementError(f"a command failed on {host}", expected=command, got=_last(done.stderr))
    return done.stdout


def _scp(sources: list[str], target: str) -> None:
    done = _run(["scp", "-q", *_OPTIONS, *sources, target], 300)
    if done.returncode != 0:
        raise MeasurementError(
            "a file could not be copied", expected=f"scp to {target}", got=_last(done.stderr)
        )


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except FileNotFoundError as error:
        raise MissingDependencyError(
            f"{command[0]} is not installed on this machine", run="apt-get install openssh-client"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(
            f"{command[0]} took too long", expected=f"within {timeout:g} s", got="stopped"
        ) from error


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
