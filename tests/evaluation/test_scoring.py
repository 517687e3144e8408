"""What the summary says beside teacher and floor, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.scoring import Score, summarise


def row(role: str, name: str, seed: int | None, score: float, floor: str = "f") -> Score:
    key = name if seed is None else f"{name}-seed{seed}"
    return Score(key, role, name, key, seed, floor, "drums", "knn", score, score - 0.1, score + 0.1, [score])


ROWS = [
    row("teacher", "aisfx", None, 0.9, ""),
    row("random", "random", 1, 0.4),
    row("random", "random", 2, 0.6),
    row("student", "cnn4", 1, 0.8),
    row("student", "cnn4", 2, 0.7),
    row("student", "other", 1, 0.8, floor="g"),
    row("log_mel", "mean", None, 0.5, ""),
]


def found(name: str) -> dict[str, object]:
    (entry,) = [entry for entry in summarise(ROWS) if entry["name"] == name]
    return entry


def test_share_of_the_gap_and_retention() -> None:
    entry = found("cnn4")
    assert entry["seeds"] == 2
    assert entry["mean"] == pytest.approx(0.75)
    assert entry["spread"] == pytest.approx(np.std([0.8, 0.7], ddof=1))
    assert entry["floor"] == pytest.approx(0.5)
    assert entry["retention"] == pytest.approx(0.75 / 0.9)
    assert entry["share"] == pytest.approx((0.75 - 0.5) / 0.4)
    assert entry["share_spread"] == pytest.approx(np.std([0.75, 0.5], ddof=1))


def test_a_student_is_measured_from_its_own_floor_alone() -> None:
    entry = found("other")
    assert entry["floor"] is None
    assert entry["share"] is None
    assert entry["retention"] == pytest.approx(0.8 / 0.9)


def test_only_students_have_a_share() -> None:
    for name in ("aisfx", "mean", "random"):
        assert found(name)["share"] is None
        assert found(name)["retention"] is None


def test_no_share_where_the_teacher_is_not_above_the_floor() -> None:
    rows = [row("teacher", "t", None, 0.5), row("random", "r", 1, 0.5), row("student", "s", 1, 0.6)]
    (entry,) = [entry for entry in summarise(rows) if entry["role"] == "student"]
    assert entry["share"] is None
