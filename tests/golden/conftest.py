"""Which golden folder a test is about, and what it compared; ``tests/conftest.py`` prints the list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

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
        # Properties travel with the report from a worker process to the one that prints the summary.
        item.user_properties += [("golden", asdict(row)) for row in golden.deviations]
        golden.deviations.clear()
