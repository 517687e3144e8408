"""Shapes and types of public tensor functions are checked at run time, in the tests only; the golden summary."""

from __future__ import annotations

import os

import pytest
from jaxtyping import install_import_hook

CHECKED_PACKAGES = ["pipeline.losses", "pipeline.students", "pipeline.frontends"]

# Set to 0 to debug without the checks. Must come before the first import of these packages, hence here.
if os.environ.get("OSSICLE_CHECK_SHAPES", "1") != "0":
    install_import_hook(CHECKED_PACKAGES, "beartype.beartype")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the exhaustive tests to ``make test-all``: they are further cases of what others cover."""
    if "OSSICLE_SLOW" in os.environ:
        return
    left = [item for item in items if item.get_closest_marker("exhaustive")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List each golden folder that was compared, with its worst tap as a share of what its tolerance allows."""
    from tests.golden.golden_vectors import Deviation

    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    found = [
        Deviation(**value)
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "golden"
    ]
    if not found:
        return
    terminalreporter.section("golden vectors: worst deviation, as a share of the tolerance")
    for folder in sorted({row.folder for row in found}):
        rows = [row for row in found if row.folder == folder]
        worst = max(rows, key=lambda row: row.share)
        taps = len({row.tap for row in rows})
        terminalreporter.write_line(f"{folder:26} {worst.share:8.3f}  at {worst.tap}  ({taps} taps compared)")
