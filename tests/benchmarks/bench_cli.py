"""``ossicle --help`` must answer at once: no heavy import on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from tests.benchmarks.rows import REPOSITORY, CannotRunError, Row, fastest_seconds

NAMES = ("help_seconds",)


def _command() -> list[str]:
    beside = Path(sys.executable).parent / "ossicle"
    found = str(beside) if beside.is_file() else shutil.which("ossicle")
    if found is None:
        raise CannotRunError("the command ossicle is not installed: make setup")
    return [found, "--help"]


def rows(names: Collection[str]) -> Iterator[Row]:
    """Measure the fastest of several whole processes, the interpreter's start included."""
    command, environment = _command(), {**os.environ, "TERM": "dumb"}

    def run_help() -> None:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CannotRunError(f"{command[0]} --help ended with {done.returncode}: {done.stderr[-300:]}")

    def bare() -> None:
        subprocess.run([sys.executable, "-c", "pass"], check=True)

    seconds = fastest_seconds({"help": run_help, "bare": bare}, repeats=7)
    detail = f"of which {seconds['bare']:.2f} s are the bare interpreter"
    yield Row.at_most("help_seconds", seconds["help"], 0.4, "s", detail)
