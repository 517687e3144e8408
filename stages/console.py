"""Where stages print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from pipeline.contract import Finding


def console() -> Any:
    """Return a rich console on stderr."""
    from rich.console import Console

    # A log has no width of its own: tables are written whole instead of being cut at 80 columns.
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 160)


def progress_bar(console: Any, *, remaining: bool = False) -> Progress:
    """Return a bar that counts; ``remaining`` says how long it still takes, not how long it took."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    time = TimeRemainingColumn() if remaining else TimeElapsedColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), time)
    return Progress(*columns, console=console, disable=not console.is_terminal)


def print_findings(subject: str, findings: Sequence[Finding], console: Any) -> bool:
    """Print a checker's findings and what they say of ``subject``; return whether all of the contract is kept."""
    for finding in findings:
        mark = "ok    " if finding.kept else "BROKEN"
        detail = "" if finding.kept else f": {finding.problem}"
        console.print(f"{mark} {finding.part}{detail}", markup=False, soft_wrap=True)
    broken = sum(not finding.kept for finding in findings)
    verdict = "keeps the contract" if not broken else f"breaks {broken} parts of the contract"
    console.print(f"{subject} {verdict}", markup=False, soft_wrap=True)
    return not broken
