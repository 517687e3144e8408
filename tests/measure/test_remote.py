"""``--host`` against a board on loopback: OpenSSH's client, a server with its own user, numpy and onnxruntime alone."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, MeasurementError, MissingDependencyError, OssicleError
from pipeline.measure import remote
from tests.measure import graphs
from tests.measure.fake_board import FakeBoard, running

# The processor of a board is not asked for its own words on what it computed.
TURNED = """
import numpy as np, onnxruntime
class Session(onnxruntime.InferenceSession):
    def run(self, names, feed, options=None):
        return [np.ascontiguousarray(value[:, ::-1]) for value in super().run(names, feed, options)]
onnxruntime.InferenceSession = Session
"""
FLICKERING = """
import sys, numpy as np, onnxruntime
class Session(onnxruntime.InferenceSession):
    def run(self, names, feed, options=None):
        return [value + np.float32("--pin" in sys.argv) for value in super().run(names, feed, options)]
onnxruntime.InferenceSession = Session
"""


@pytest.fixture(scope="module")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeBoard]:
    with running(tmp_path_factory.mktemp("board")) as board:
        yield board


@pytest.fixture
def board(_served: FakeBoard) -> Iterator[FakeBoard]:
    _served.commands.clear()
    yield _served
    _served.cut = None
    (_served.site / "sitecustomize.py").unlink(missing_ok=True)
    assert list((_served.home / "tmp").glob("tmp.*")) == [], "the board is not left as it was"


def _time(board: FakeBoard, **models: Path) -> dict[str, dict[str, object]]:
    given = {name: (path, graphs.value()) for name, path in models.items()}
    found = remote.time_on_board(board.host, given, runs=12, seconds=2, ssh_config=board.ssh_config)
    assert found["host"] == board.host
    records: dict[str, dict[str, object]] = found["models"]
    return records


def test_the_board_has_numpy_and_onnxruntime_alone(board: FakeBoard) -> None:
    ask = "import numpy, onnxruntime, importlib.util as u; "
    ask += "print([m for m in ('torch', 'onnx', 'pipeline') if u.find_spec(m)])"
    done = subprocess.run(
        ["ssh", "-F", str(board.ssh_config), board.host, f'python3 -c "{ask}"; echo $USER $HOME'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["[]", f"board {board.home}"]


def test_times_come_with_a_compared_output(board: FakeBoard, fp32: Path, s8s8: Path) -> None:
    records = _time(board, float=fp32, int8=s8s8)
    for record in records.values():
        assert record["comparison"]["believable"]  # type: ignore[index]
        assert 0 < record["p10_ms"] <= record["p50_ms"]  # type: ignore[operator]
        assert record["runs"] <= 12  # type: ignore[operator]
        processor = record["processor"]
        assert processor["affinity"] == [processor["core"]]  # type: ignore[index]
        assert {"governor", "part"} <= set(processor)  # type: ignore[call-overload]
        for when in ("before", "after"):
            assert {"zones_celsius", "throttled", "load_1min"} <= set(record[when])  # type: ignore[call-overload]
    # What it computes is looked at before anything is timed.
    kinds = ["--once" in c for c in board.commands if "latency.py" in c and "python3" in c]
    assert kinds == [True, False, True, False]


def test_a_board_that_computes_something_else_gets_no_time(board: FakeBoard, fp32: Path) -> None:
    (board.site / "sitecustomize.py").write_text(TURNED, encoding="utf-8")
    record = _time(board, float=fp32)["float"]
    assert "differs from x86's" in str(record["not_measured"])
    assert not any(name.endswith("_ms") for name in record)
    assert not any("--pin" in command for command in board.commands)


def test_a_board_that_changes_its_mind_gets_no_time(board: FakeBoard, fp32: Path) -> None:
    (board.site / "sitecustomize.py").write_text(FLICKERING, encoding="utf-8")
    record = _time(board, float=fp32)["float"]
    assert "changed from one run to the next" in str(record["not_measured"])
    assert not any(name.endswith("_ms") for name in record)


@pytest.mark.parametrize("moment", ["--pin", "--once", "cat >"])
def test_a_connection_that_breaks_is_one_line(board: FakeBoard, fp32: Path, moment: str) -> None:
    board.cut = moment
    with pytest.raises(MeasurementError, match=r"the connection to .* broke while") as caught:
        _time(board, float=fp32)
    assert "timing float" in caught.value.problem or moment != "--pin"
    assert "\n" not in caught.value.problem


def test_a_runner_that_dies_says_how(board: FakeBoard, fp32: Path) -> None:
    (board.site / "sitecustomize.py").write_text(
        "import os, sys\nif '--pin' in sys.argv: os.kill(os.getpid(), 9)\n", encoding="utf-8"
    )
    with pytest.raises(MeasurementError, match=r"timing float failed on .* out of memory"):
        _time(board, float=fp32)


def test_a_model_that_the_board_cannot_load_says_so(board: FakeBoard, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(MeasurementError, match="running broken failed on") as caught:
        _time(board, broken=tmp_path / "broken.onnx")
    assert "InvalidProtobuf" in str(caught.value)


def test_a_board_without_onnxruntime_names_the_command(tmp_path: Path, fp32: Path) -> None:
    with running(tmp_path, packages=("numpy",)) as bare, pytest.raises(MissingDependencyError) as caught:
        _time(bare, float=fp32)
    assert "pip install onnxruntime" in str(caught.value)
    assert "No module named 'onnxruntime'" in str(caught.value)


def _refused(board: FakeBoard, host: str, fp32: Path) -> str:
    with pytest.raises(MeasurementError, match="cannot reach") as caught:
        remote.time_on_board(host, {"float": (fp32, graphs.value())}, ssh_config=board.ssh_config)
    assert "ssh-copy-id" in str(caught.value)
    assert str(caught.value).count("\n") == 3
    return str(caught.value.got)


def test_a_wrong_host_is_one_line_each(board: FakeBoard, fp32: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert "refused" in _refused(board, f"ssh://board@127.0.0.1:{port}", fp32)
    assert "Permission denied" in _refused(board, board.host.replace("board@", "mallory@"), fp32)
    assert "resolve" in _refused(board, "board@no-such-board.invalid", fp32)


def test_another_machine_under_the_boards_name_is_refused(
    board: FakeBoard, fp32: Path, tmp_path: Path
) -> None:
    text = board.ssh_config.read_text(encoding="utf-8")
    known = next(line.split()[1] for line in text.splitlines() if line.startswith("UserKnownHostsFile"))
    other = tmp_path / "known_hosts"
    key = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    other.write_text(f"fake-board ssh-ed25519 {key}\n", encoding="utf-8")
    (tmp_path / "config").write_text(text.replace(known, str(other)), encoding="utf-8")
    impostor = FakeBoard(board.host, tmp_path / "config", board.home, board.site)
    assert "verification failed" in _refused(impostor, board.host, fp32)


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "pi@board; reboot", "", "a b", "scp://x"])
def test_a_host_that_is_an_option_or_a_command_is_refused(host: str, fp32: Path) -> None:
    with pytest.raises(ConfigError, match="no host"):
        remote.time_on_board(host, {"float": (fp32, graphs.value())})


def test_without_ssh_the_program_is_named(
    fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="ssh is not installed"):
        remote.time_on_board("pi@board", {"float": (fp32, graphs.value())})


def test_throttling_in_words() -> None:
    # Raspberry Pi documentation, vcgencmd: bits 0-3 now, 16-19 since boot.
    assert remote.throttling("0x50005") == [
        "under-voltage", "throttled", "under-voltage since it started", "throttled since it started",
    ]  # fmt: skip
    assert remote.throttling("0x0") == remote.throttling(None) == []
    record = {
        "processor": {"governor": "powersave"},
        "before": {"load_1min": 0.1, "throttle_count": 3},
        "after": {"throttled": "0x8", "throttle_count": 4},
    }
    found = remote.disturbances(record)
    assert [word.split(":")[0] for word in found] == [
        "soft temperature limit", "the core was throttled while it was timed", "governor powersave",
    ]  # fmt: skip
    assert remote.disturbances({"processor": {"governor": "performance"}, "before": {"load_1min": 0.0}}) == []


def test_what_a_board_prints_before_the_record_is_passed_over(board: FakeBoard) -> None:
    assert remote._parse("pi@board", b"Welcome!\n" + json.dumps([1]).encode()) == [1]
    with pytest.raises(OssicleError, match="printed no record"):
        remote._parse("pi@board", b"Welcome!\n")
    with pytest.raises(MeasurementError, match="no array"):
        remote._array("pi@board", b"Welcome!")
