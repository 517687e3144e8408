"""What a benchmark module gives back (``Row``) and how it measures time and memory."""

from __future__ import annotations

import importlib
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class CannotRunError(Exception):
    """A row cannot be measured on this machine; the message says why and is printed in the row's place."""


@dataclass(frozen=True)
class Row:
    """One measured figure against its goal.

    Attributes:
        name: the row's name, one of its module's ``NAMES``.
        value: the measured figure; None where it could not be measured.
        unit: of ``value`` ("x", "s", "share").
        goal: the goal in words, for instance ">= 3".
        met: whether the goal holds; None where it could not be measured.
        detail: what the figure was made of, or why there is none.
    """

    name: str
    value: float | None
    unit: str
    goal: str
    met: bool | None
    detail: str = ""

    @classmethod
    def at_least(cls, name: str, value: float, goal: float, unit: str = "x", detail: str = "") -> Row:
        """Return a row that is met if ``value >= goal``."""
        return cls(name, value, unit, f">= {goal:g}", math.isfinite(value) and value >= goal, detail)

    @classmethod
    def at_most(cls, name: str, value: float, goal: float, unit: str, detail: str = "") -> Row:
        """Return a row that is met if ``value <= goal``."""
        return cls(name, value, unit, f"<= {goal:g}", math.isfinite(value) and value <= goal, detail)

    @classmethod
    def not_run(cls, name: str, why: str) -> Row:
        """Return a row that could not be measured here."""
        return cls(name, None, "", "", None, f"not run: {why}")


def fastest_seconds(variants: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Return the fastest wall time of each variant in seconds, repetitions interleaved.

    Each variant runs once unmeasured; then every repetition runs all of them in turn, so that a busy
    spell of the machine falls on all alike.
    """
    best = dict.fromkeys(variants, math.inf)
    for function in variants.values():
        function()
    for _ in range(repeats):
        for name, function in variants.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def _resident_bytes(field: str) -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field + ":"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_growth_bytes(prepare: str, *arguments: str) -> int:
    """Return by how much the peak resident memory of a fresh process grows while a function runs.

    Args:
        prepare: ``"module:function"``; called with ``arguments`` in the new process it does what is not
            to be counted (imports, inputs, one small warm-up) and returns the function to measure.
        arguments: strings handed to ``prepare``.
    """
    command = [sys.executable, "-m", "tests.benchmarks.rows", prepare, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRunError(f"{' '.join(command[2:])} ended with {done.returncode}: {done.stderr[-500:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_growth_bytes"])


def _measure(prepare: str, arguments: list[str]) -> int:
    module, attribute = prepare.split(":")
    function = getattr(importlib.import_module(module), attribute)(*arguments)
    # The kernel's own high-water mark: ru_maxrss would carry the parent's across fork and exec.
    before = _resident_bytes("VmRSS")
    function()
    return max(_resident_bytes("VmHWM") - before, 0)


if __name__ == "__main__":
    print(json.dumps({"peak_growth_bytes": _measure(sys.argv[1], sys.argv[2:])}))
