"""A board reached by ssh, played by this machine: ``ssh`` and ``scp`` on PATH are scripts that run locally."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, MeasurementError, MissingDependencyError
from pipeline.measure import remote
from tests.measure import graphs

SSH = """
while [ "$1" = "-o" ]; do shift 2; done
echo "$1: $2" >> "$BOARD_LOG"
shift
PATH="$BOARD_BIN:$PATH" exec sh -c "$*"
"""
SCP = """
while :; do case "$1" in -o) shift 2;; -q) shift;; *) break;; esac; done
exec cp "${1#*board:}" "${2#*board:}"
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs: what this machine calls (here/) and what the board has (there/)."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    _program(here / "ssh", SSH)
    _program(here / "scp", SCP)
    _program(there / "python3", f'exec "{sys.executable}" "$@"')
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    monkeypatch.setenv("BOARD_BIN", str(there))
    monkeypatch.setenv("BOARD_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_times_come_with_a_compared_output(board: Path, fp32: Path, s8s8: Path) -> None:
    models = {"float": (fp32, graphs.value()), "int8": (s8s8, graphs.value())}
    found = remote.time_on_board("pi@board", models, runs=12, seconds=2)
    assert found["host"] == "pi@board"
    for record in found["models"].values():
        assert record["comparison"]["believable"]
        assert record["p50_ms"] > 0
        assert record["runs"] <= 12
    left = [p for p in board.iterdir() if p.name.startswith("tmp.")]
    assert left == []  # the board is left as it was


def test_a_board_that_computes_something_else_gets_no_time(board: Path, fp32: Path) -> None:
    spoil = (
        "import runpy, sys, numpy as np; sys.argv = sys.argv[1:]; save = np.save; "
        "np.save = lambda f, a: save(f, a[:, ::-1]); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    _program(
        board / "there/python3",
        f'case "$1" in *.py) exec "{sys.executable}" -c "{spoil}" "$@";; *) exec "{sys.executable}" "$@";; esac',
    )
    found = remote.time_on_board("pi@board", {"float": (fp32, graphs.value())}, runs=10, seconds=1)
    record = found["models"]["float"]
    assert "differs" in record["not_measured"]
    assert not any(name.endswith("_ms") for name in record)


def test_a_board_without_onnxruntime_names_the_command(board: Path, fp32: Path) -> None:
    _program(
        board / "there/python3", "echo \"ModuleNotFoundError: No module named 'onnxruntime'\" >&2; exit 1"
    )
    with pytest.raises(MissingDependencyError) as caught:
        remote.time_on_board("pi@board", {"float": (fp32, graphs.value())})
    assert "pip install onnxruntime" in str(caught.value)
    assert "No module named" in str(caught.value)


def test_an_unreachable_board_says_so(board: Path, fp32: Path) -> None:
    _program(board / "here/ssh", "echo 'ssh: connect to host board: No route to host' >&2; exit 255")
    with pytest.raises(MeasurementError, match="cannot reach pi@board") as caught:
        remote.time_on_board("pi@board", {"float": (fp32, graphs.value())})
    assert "No route to host" in str(caught.value)


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "pi@board; reboot", "", "a b"])
def test_a_host_that_is_an_option_or_a_command_is_refused(host: str, fp32: Path) -> None:
    with pytest.raises(ConfigError, match="no host"):
        remote.time_on_board(host, {"float": (fp32, graphs.value())})
