"""How trials show while they run: one bar for all, one for each that is trained; lines where there is no terminal."""

from __future__ import annotations

import threading
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

ENDED = ("done", "pruned", "failed", "reused")


class TrialDisplay:
    """Shows what ``pipeline.search`` reports; called from several threads.

    Args:
        console: where to.
        command: ``sweep`` or ``search``.
        total: trials of the study's budget.
        ended: how many of them are over already.
    """

    def __init__(self, console: Console, command: str, total: int, ended: int) -> None:
        self._console, self._command = console, command
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console, disable=not console.is_terminal, auto_refresh=console.is_terminal,
        )  # fmt: skip
        self._all = self._bars.add_task(command, total=total, completed=ended, figures="")
        self._tasks: dict[int, TaskID] = {}
        self._refused = 0
        self._lock = threading.Lock()

    def __enter__(self) -> TrialDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def report(self, trial: int, kind: str, fields: dict[str, Any]) -> None:
        """Show one report of a trial."""
        with self._lock:
            if kind == "start":
                text = f"  trial {trial} {fields['student']}"
                self._tasks[trial] = self._bars.add_task(text, total=fields["total"], figures="preparing")
            elif kind == "progress" and trial in self._tasks:
                self._bars.update(
                    self._tasks[trial], completed=fields["step"], figures=f"loss {fields['loss']:.4f}"
                )
            elif kind == "warning":
                self._say(f"trial {trial}: warning: {fields['text']}")
            elif kind == "refused":
                self._refused += 1
                self._bars.update(self._all, figures=f"{self._refused} draws refused")
            elif kind in ENDED:
                self._end(trial, kind, fields)

    def _end(self, trial: int, kind: str, fields: dict[str, Any]) -> None:
        if trial in self._tasks:
            self._bars.remove_task(self._tasks.pop(trial))
        self._bars.advance(self._all)
        value = fields.get("value")
        text = {
            "done": lambda: f"{value:.4f} after {fields['steps']} steps" + fields.get("costs", ""),
            "pruned": lambda: f"pruned at step {fields['step']}",
            "failed": lambda: f"failed: {fields['text']}",
            "reused": lambda: f"equal to trial {fields['from']}, reused",
        }[kind]()
        self._say(f"trial {trial}: {text}")

    def _say(self, text: str) -> None:
        self._console.print(f"{self._command}: {text}", markup=False)
