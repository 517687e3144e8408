"""Batches that break the published formulas: duplicates, zeros, collapse, one or two rows, extreme sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.losses.angle_wise import angle_wise
from pipeline.losses.cosine_wise import cosine_wise
from pipeline.losses.direction import unit_rows
from pipeline.losses.distance_wise import distance_wise
from pipeline.losses.feature_wise import feature_wise
from tests.losses import published
from tests.losses.test_laws import ALL, CONTRASTIVE, RELATIONAL, draw, gradient_of

EQUAL = ["two_equal", "half_equal", "all_equal", "nearly_equal"]
DAMAGES = ["none", *EQUAL, "one_zero", "two_zero", "all_zero", "tiny"]
# On the gradient in units of the rows' norm; the published formulas reach 1e7 to 1e16.
BOUND = 1e3
# A cosine's gradient comes divided by the temperature; the published distance correlation, of rows that are
# spread over less than 1e-4, by the root of its constant 1e-9.
FACTOR = dict.fromkeys(CONTRASTIVE, 0.07) | {"distance_correlation": 1e-9**0.5}


def damaged(rows: Tensor, damage: str) -> Tensor:
    rows = rows.clone()
    match damage:
        case "two_equal":
            rows[1:2] = rows[0]
        case "half_equal":
            rows[: len(rows) // 2] = rows[0].clone()
        case "all_equal":
            rows[:] = rows[0].clone()
        case "one_zero":
            rows[0] = 0.0
        case "two_zero":
            rows[:2] = 0.0
        case "all_zero":
            rows[:] = 0.0
        case "nearly_equal":
            rows[1:2] = rows[0] * (1.0 + 3e-7)
        case "tiny":
            rows[0] *= 1e-9
    return rows


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 12),
    seed=st.integers(0, 2**31 - 1),
    student_damage=st.sampled_from(DAMAGES),
    teacher_damage=st.sampled_from(DAMAGES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_value_and_gradient_stay_finite_and_bounded(
    name: str, batch: int, seed: int, student_damage: str, teacher_damage: str, dtype: torch.dtype
) -> None:
    student = damaged(draw(seed, batch, 6), student_damage).to(dtype)
    teacher = damaged(draw(seed + 1, batch, 6), teacher_damage).to(dtype)
    assert ALL[name](student, teacher).isfinite()
    gradient = gradient_of(ALL[name], student, teacher)
    assert gradient.isfinite().all()
    norm = student.double().square().sum(dim=1).mean().sqrt().item()
    assert gradient.abs().max() * min(norm or 1.0, 1.0) < BOUND / FACTOR.get(name, 1.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15])
@pytest.mark.parametrize(
    "name", ["distance", "angle", "angle_sampled", "kernel", "similarity", "distance_correlation_free"]
)
def test_extreme_scales_keep_the_value(name: str, scale: float) -> None:
    student, teacher = draw(0, 12, 6), draw(1, 12, 6)
    want = RELATIONAL[name](student, teacher).item()
    assert RELATIONAL[name](student * scale, teacher).item() == pytest.approx(want, rel=1e-5)
    assert gradient_of(RELATIONAL[name], student * scale, teacher).isfinite().all()


# Correlations of one row are none at all: 1 - 0.
CORRELATIONS = [name for name in RELATIONAL if name.startswith(("distance_correlation", "kernel"))]


@pytest.mark.parametrize("name", RELATIONAL)
def test_batch_of_one_has_nothing_to_learn(name: str) -> None:
    student, teacher = draw(0, 1, 6), draw(1, 1, 9)
    want = 1.0 if name in CORRELATIONS else 0.0
    assert RELATIONAL[name](student, teacher).item() == pytest.approx(want, abs=1e-6)
    assert gradient_of(RELATIONAL[name], student, teacher).abs().max() < 1e-6


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("collapsed", ["student", "teacher"])
def test_a_collapsed_side_correlates_with_nothing(name: str, collapsed: str) -> None:
    # The mean of equal rows is not exactly the row: what is left is rounding noise, and must not be correlated.
    student, teacher = draw(0, 10, 6), draw(1, 10, 9)
    side = student if collapsed == "student" else teacher
    side[:] = side[0].clone() * 1.1
    assert RELATIONAL[name](student, teacher).item() == pytest.approx(1.0, abs=1e-6)
    assert gradient_of(RELATIONAL[name], student, teacher).abs().max() < 1e-6


def test_the_unbiased_estimate_of_three_rows_is_none() -> None:
    student, teacher = draw(0, 3, 6), draw(1, 3, 9)
    assert RELATIONAL["kernel_unbiased"](student, teacher).item() == 1.0
    assert gradient_of(RELATIONAL["kernel_unbiased"], student, teacher).abs().max() == 0.0


@pytest.mark.parametrize("name", ["distance", "angle"])
def test_batch_of_two_has_no_relation_to_learn(name: str) -> None:
    student, teacher = draw(0, 2, 6), draw(1, 2, 9)
    assert RELATIONAL[name](student, teacher).item() == pytest.approx(0.0, abs=1e-6)
    assert gradient_of(RELATIONAL[name], student, teacher).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["distance", "angle"])
def test_collapsed_student_has_the_published_value_and_no_gradient(name: str) -> None:
    student, teacher = draw(0, 1, 6).expand(10, 6).clone(), draw(1, 10, 9)
    want = getattr(published, f"{name}_wise")(student.double(), teacher.double()).item()
    assert RELATIONAL[name](student, teacher).item() == pytest.approx(want, rel=1e-5)
    assert gradient_of(RELATIONAL[name], student, teacher).abs().max() == 0.0


def test_equal_student_rows_get_no_angle_gradient_from_each_other() -> None:
    # Three rows, two of them equal: every difference that is left has cosine 1 or 0 with all others, so
    # that no triangle can turn.
    student, teacher = draw(0, 3, 6), draw(1, 3, 6)
    student[1] = student[0]
    assert gradient_of(published.angle_wise, student.double(), teacher.double()).abs().max() > 1e6
    assert gradient_of(angle_wise, student, teacher).abs().max() < 1e-6


def test_zero_student_row_gets_no_gradient_and_spoils_no_other() -> None:
    student, teacher = draw(0, 8, 6), draw(1, 8, 6)
    student[3] = 0.0
    for loss in (cosine_wise, feature_wise):
        gradient = gradient_of(loss, student, teacher)
        assert gradient[3].abs().max() == 0.0
        assert 0 < gradient.abs().max() < 1.0
    others = [row for row in range(8) if row != 3]
    want = (1.0 - torch.cosine_similarity(student[others], teacher[others])).sum() + 1.0
    assert feature_wise(student, teacher).item() == pytest.approx(want.item() / 8, rel=1e-5)


def test_short_rows_and_pairs_have_a_capped_gradient_and_the_published_value() -> None:
    student, teacher = draw(0, 16, 6), draw(1, 16, 6)
    student[1] = student[0] + 1e-5 * draw(2, 6)
    want = published.angle_wise(student.double(), teacher.double()).item()
    assert angle_wise(student, teacher).item() == pytest.approx(want, rel=1e-5)
    literal = gradient_of(published.angle_wise, student.double(), teacher.double())
    capped = gradient_of(angle_wise, student, teacher)
    assert capped.abs().max() < 0.1 * literal.abs().max()
    assert (capped[2:] - literal[2:]).abs().max() <= 1e-5 * literal[2:].abs().max()

    rows = draw(3, 5, 4)
    rows[0] *= 1e-6
    jacobian = torch.autograd.functional.jacobian(unit_rows, rows)
    assert isinstance(jacobian, Tensor)
    assert jacobian.abs().max() < 2e3
    assert torch.allclose(unit_rows(rows), torch.nn.functional.normalize(rows))


def test_duplicates_count_in_the_mean_distance_as_published() -> None:
    student, teacher = draw(0, 10, 6), draw(1, 10, 6)
    student[4], teacher[7] = student[2], teacher[1]
    want = published.distance_wise(student.double(), teacher.double()).item()
    assert distance_wise(student, teacher).item() == pytest.approx(want, rel=1e-5)
