"""How runs show while they train: a bar each, or lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline.training.job import Job

LINE_SECONDS = 15.0


class RunDisplay:
    """One bar a run; where there is no terminal, a line a run every ``LINE_SECONDS``.

    Args:
        console: where to.
        command: what begins every line.
        steps: label of each run to its number of steps.
    """

    def __init__(self, console: Console, command: str, steps: Mapping[str, int]) -> None:
        self._console, self._command, self._steps = console, command, steps
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"), TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console, disable=not console.is_terminal, auto_refresh=console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._spoke: dict[str, float] = {}
        self._width = max(map(len, steps))

    def __enter__(self) -> RunDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bars as they are."""
        self._bars.stop()

    def show(self, job: Job, event: dict[str, Any]) -> None:
        """Show one event of ``pipeline.training.pool``."""
        label, kind = job.run.label, event["event"]
        if kind == "start":
            self._start(label)
        elif kind == "progress":
            self._progress(label, event)
        elif kind == "warning":
            self._console.print(f"{self._command}: warning: {event['text']}", markup=False)
        elif kind == "failed":
            self._console.print(f"{self._command}: {label} failed: {event['text']}", markup=False)
        elif kind == "stopped":
            self._console.print(
                f"{self._command}: {label} stopped at step {event['step']}, checkpoint written"
            )
        elif kind == "done":
            self._done(label, event["summary"])

    def _start(self, label: str) -> None:
        steps = self._steps[label]
        self._tasks[label] = self._bars.add_task(label.ljust(self._width), total=steps, figures="preparing")
        self._spoke[label] = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"{self._command}: {label} starts, {steps} steps")

    def _progress(self, label: str, event: dict[str, Any]) -> None:
        figures = f"loss {event['loss']:.4f}  {event['samples_per_second']:,.0f} samples/s"
        self._bars.update(self._tasks[label], completed=event["step"], figures=figures)
        now = time.monotonic()
        self._began.setdefault(label, (now, event["step"]))
        if not self._console.is_terminal and now - self._spoke[label] >= LINE_SECONDS:
            self._spoke[label] = now
            since, first = self._began[label]
            left = (event["steps"] - event["step"]) * (now - since) / max(event["step"] - first, 1)
            left_text = timedelta(seconds=round(left))
            self._console.print(
                f"{self._command}: {label} {event['step']}/{event['steps']}  {figures}  {left_text} left"
            )

    def _done(self, label: str, summary: dict[str, Any]) -> None:
        self._bars.update(
            self._tasks[label], completed=summary["steps"], total=summary["steps"], figures="done"
        )
        if not self._console.is_terminal:
            self._console.print(f"{self._command}: {label} is done, {summary['steps']} steps")
