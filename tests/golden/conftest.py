"""Which golden folder a test is about, and the list of folders with their worst deviation at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.golden import golden_vectors as golden


def _folder_of(item: pytest.Item) -> str | None:
    """Return the golden folder among the test's parameters, else the one that its file is named after."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    named = [v for v in parameters.values() if isinstance(v, str) and (golden.GOLDEN_DIR / v).is_dir() and v]
    if named:
        return named[0]
    family = item.path.stem.removeprefix("test_golden_")
    return family if (golden.GOLDEN_DIR / family).is_dir() else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    golden.running_folder = _folder_of(item)
    try:
        return (yield)
    finally:
        golden.running_folder = None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List each golden folder that was compared, with its worst tap as a share of what its tolerance allows."""
    if not golden.deviations:
        return
    terminalreporter.section("golden vectors: worst deviation, as a share of the tolerance")
    for folder in sorted({row.folder for row in golden.deviations}):
        rows = [row for row in golden.deviations if row.folder == folder]
        worst = max(rows, key=lambda row: row.share)
        taps = len({row.tap for row in rows})
        terminalreporter.write_line(f"{folder:26} {worst.share:8.3f}  at {worst.tap}  ({taps} taps compared)")
