"""Time ONNX files on a real board by ssh. The board needs python3, numpy and onnxruntime, nothing of ours.

A board's output is compared with x86's before it times anything; a model that answers otherwise gets no time.
Files travel through ssh itself (``cat``), so that boards without an SFTP server (dropbear) serve too.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, MeasurementError, MissingDependencyError
from pipeline.measure import latency
from pipeline.measure.arm import compare_outputs, x86_reference

_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
_PROBE = (
    "python3 -c 'import json, platform, numpy, onnxruntime; "
    "v = [platform.machine(), platform.python_version(), numpy.__version__, onnxruntime.__version__]; "
    "print(json.dumps(v))'"
)
_LOST = 255  # ssh's own exit status: no connection, or one that broke
# vcgencmd get_throttled: the documented bits, now and since the board started.
_THROTTLED = {
    0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit",
    16: "under-voltage since it started", 17: "clock capped since it started",
    18: "throttled since it started", 19: "soft temperature limit since it started",
}  # fmt: skip


def time_on_board(
    host: str,
    models: Mapping[str, tuple[Path, np.ndarray]],
    *,
    runs: int = 200,
    seconds: float = 10.0,
    ssh_config: Path | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Time every model on the board and return what it is and what it took.

    Args:
        host: ``user@board`` or ``ssh://user@board:port``; a key must let us in without a password.
        models: name to (ONNX file, input).
        runs: inferences timed at most; seconds: time spent on one model at most.
        ssh_config: an ssh configuration file instead of the user's own.
        progress: called with each model's name before it is measured.

    Returns:
        ``{"host", "machine", "versions": {...}, "models": {name: record}}``. A record has ``comparison`` (see
        ``arm.compare_outputs``) and, only where that is believable, ``p10_ms p50_ms p95_ms``, the board's
        ``processor`` (core, affinity, governor), its ``before`` and ``after`` (temperatures, clock, throttling)
        and ``warnings``; else ``not_measured`` says why.

    Raises:
        ConfigError: ``host`` is no host name.
        MissingDependencyError: python3, numpy or onnxruntime is absent on the board, or ssh here.
        MeasurementError: the board cannot be reached, the connection broke, or a transfer failed.
    """
    if not re.fullmatch(r"(ssh://)?[A-Za-z0-9_][A-Za-z0-9_.@:%\[\]-]*", host):
        raise ConfigError("that is no host that ssh can reach", expected="user@board", got=host)
    board = _Board(host, ssh_config)
    machine, python, numpy_version, runtime = board.probe()
    records: dict[str, dict[str, Any]] = {}
    with board.folder() as folder:
        board.write(f"{folder}/latency.py", Path(latency.__file__).read_bytes())
        for name, (model, value) in models.items():
            progress(name)
            records[name] = _time_one(board, folder, name, model, value, runs, seconds)
    return {
        "host": host,
        "machine": machine,
        "versions": {"python": python, "numpy": numpy_version, "onnxruntime": runtime},
        "models": records,
    }


def throttling(code: str | None) -> list[str]:
    """Return in words what ``vcgencmd get_throttled`` says, e.g. of ``0x50005``; none of null or ``0x0``."""
    bits = int(code, 16) if code else 0
    return [word for bit, word in _THROTTLED.items() if bits >> bit & 1]


def disturbances(record: dict[str, Any]) -> list[str]:
    """Return what may have spoiled a board's time: throttling, a governor that lowers the clock, other load."""
    before, after = record.get("before") or {}, record.get("after") or {}
    found = throttling(after.get("throttled"))
    if (after.get("throttle_count") or 0) > (before.get("throttle_count") or 0):
        found.append("the core was throttled while it was timed")
    governor = (record.get("processor") or {}).get("governor")
    if governor not in (None, "performance"):
        found.append(f"governor {governor}: the clock may have been below its most")
    if (before.get("load_1min") or 0) > 0.7:
        found.append(f"load {before['load_1min']:.1f} before it began")
    return found


def _time_one(
    board: _Board, folder: str, name: str, model: Path, value: np.ndarray, runs: int, seconds: float
) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, value)
    board.write(f"{folder}/model.onnx", model.read_bytes())
    board.write(f"{folder}/input.npy", buffer.getvalue())
    runner = f"cd {folder} && python3 latency.py model.onnx input.npy --json"
    record = board.record(f"{runner} --once --output output.npy", f"running {name}", 300)
    got = _array(board.host, board.read(f"{folder}/output.npy"))
    comparison = compare_outputs(got, x86_reference(model, value))
    if record["output_sha256"] != latency.array_hash(got):
        comparison["believable"] = False
    if comparison["believable"]:
        timing = f"{runner} --pin --runs {runs} --seconds {seconds}"
        timed = board.record(timing, f"timing {name}", 300 + 20 * seconds)
        if timed["output_sha256"] == record["output_sha256"]:
            return {**timed, "comparison": comparison, "warnings": disturbances(timed)}
        why = "the board's output changed from one run to the next"
    else:
        why = f"the board's output differs from x86's (cosine {comparison['cosine']})"
    return {**record, "comparison": comparison, "not_measured": why}


class _Board:
    """Commands on the board; every failure is one ``MeasurementError`` that says which command and why."""

    def __init__(self, host: str, ssh_config: Path | None) -> None:
        self.host = host
        self._ssh = ["ssh", *(["-F", str(ssh_config)] if ssh_config else []), *_OPTIONS, host]

    def probe(self) -> list[str]:
        """Return machine, and versions of Python, numpy and ONNX Runtime."""
        done = self._call(_PROBE, 60)
        if done.returncode == _LOST:
            raise MeasurementError(
                f"cannot reach {self.host}", expected="ssh without a password", got=_last(done.stderr),
                run=f"ssh-copy-id {self.host}, then ssh {self.host} true",
            )  # fmt: skip
        if done.returncode != 0:
            raise MissingDependencyError(
                f"{self.host} cannot run the benchmark", expected="python3 with numpy and onnxruntime",
                got=_last(done.stderr), run=f"ssh {self.host} python3 -m pip install onnxruntime",
            )  # fmt: skip
        return [str(entry) for entry in _parse(self.host, done.stdout)]

    @contextmanager
    def folder(self) -> Iterator[str]:
        """Give a temporary folder on the board, removed at the end."""
        folder = self._checked("mktemp -d", "making a temporary folder").decode().strip()
        if not re.fullmatch(r"/[A-Za-z0-9_./-]+", folder):
            raise MeasurementError(f"{self.host} gave no temporary folder", expected="a path", got=folder)
        try:
            yield folder
        except BaseException:
            with suppress(MeasurementError):  # what went wrong before is told, not that this did too
                self._call(f"rm -rf {folder}", 30)
            raise
        self._checked(f"rm -rf {folder}", "removing the temporary folder")

    def write(self, path: str, content: bytes) -> None:
        """Write a file on the board."""
        self._checked(f"cat > {path}", f"copying {Path(path).name}", content)

    def read(self, path: str) -> bytes:
        """Return a file of the board."""
        return self._checked(f"cat {path}", f"fetching {Path(path).name}")

    def record(self, command: str, doing: str, timeout: float) -> dict[str, Any]:
        """Return the JSON record that ``command`` prints last."""
        found: dict[str, Any] = _parse(self.host, self._checked(command, doing, timeout=timeout))
        return found

    def _checked(self, command: str, doing: str, content: bytes = b"", timeout: float = 300) -> bytes:
        done = self._call(command, timeout, content)
        if done.returncode == _LOST:
            raise MeasurementError(
                f"the connection to {self.host} broke while {doing}", expected="an answer",
                got=_last(done.stderr), run="the same command again; nothing of the board was kept",
            )  # fmt: skip
        if done.returncode != 0:
            killed = " (killed: out of memory?)" if done.returncode in (137, 247) else ""
            raise MeasurementError(
                f"{doing} failed on {self.host}: exit code {done.returncode}{killed}",
                got=_last(done.stderr),
            )
        return done.stdout

    def _call(self, command: str, timeout: float, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                [*self._ssh, command], input=content, capture_output=True, check=False, timeout=timeout
            )
        except FileNotFoundError as error:
            raise MissingDependencyError(
                "ssh is not installed on this machine", run="apt-get install openssh-client"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(
                f"{self.host} did not answer", expected=f"within {timeout:g} s", got="stopped"
            ) from error


def _parse(host: str, printed: bytes) -> Any:
    # A login script may print before the runner does; the record is the last line.
    text = printed.decode(errors="replace")
    try:
        return json.loads(text.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise MeasurementError(
            f"{host} printed no record", expected="one JSON line", got=text[-200:]
        ) from error


def _array(host: str, content: bytes) -> np.ndarray:
    try:
        found: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise MeasurementError(
            f"{host} gave an output that is no array", expected="a .npy file", got=str(error)
        ) from error
    return found


def _last(text: bytes) -> str:
    return (text.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
