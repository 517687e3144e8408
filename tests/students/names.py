"""Which students a test that holds for all of them runs over."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from pipeline.students import students

EXHAUSTIVE = pytest.mark.exhaustive
# The first of each file, in the registry's order.
ONE_A_FAMILY = list({students.get(name).__module__: name for name in reversed(students.names())}.values())


def every_student(but: Collection[str] = ()) -> list[object]:
    """Return every registered name; those whose family another one stands for run with the exhaustive tests."""
    names = [name for name in students.names() if name not in but]
    return [name if name in ONE_A_FAMILY else pytest.param(name, marks=EXHAUSTIVE) for name in names]
