"""Distance- and angle-wise against the published formulas written out, on embeddings as they really look."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.losses import angle_wise as angle_module
from pipeline.losses.angle_wise import angle_wise
from pipeline.losses.distance_wise import distance_wise
from tests.losses import published
from tests.losses.test_laws import draw, gradient_of


def realistic(batch: int, student_dim: int, teacher_dim: int, offset: float) -> tuple[Tensor, Tensor]:
    """Low-rank embeddings with noise, uneven axes, a common offset, near neighbours and exact duplicates."""
    factors = draw(10, batch, 12)
    factors[batch // 2 :] = factors[: batch - batch // 2] + 0.1 * draw(11, batch - batch // 2, 12)
    student = factors @ draw(12, 12, student_dim) + 0.1 * draw(13, batch, student_dim)
    teacher = factors @ draw(14, 12, teacher_dim) + 0.1 * draw(15, batch, teacher_dim)
    student *= torch.linspace(0.2, 3.0, student_dim)
    student, teacher = student + offset * draw(16, student_dim), teacher + offset * draw(17, teacher_dim)
    student[3], teacher[3] = student[0], teacher[0]
    teacher[5] = teacher[4]
    return student, teacher


@pytest.mark.parametrize("offset", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("batch", [6, 33, 128])
@pytest.mark.parametrize("name", ["angle_wise", "distance_wise"])
def test_equal_to_the_published_formula(name: str, batch: int, offset: float) -> None:
    ours = {"angle_wise": angle_wise, "distance_wise": distance_wise}[name]
    literal = getattr(published, name)
    student, teacher = realistic(batch, 24, 64, offset)
    want = literal(student.double(), teacher.double())
    assert ours(student, teacher).item() == pytest.approx(want.item(), rel=1e-5)
    got_gradient = gradient_of(ours, student, teacher).double()
    want_gradient = gradient_of(literal, student.double(), teacher.double())
    # Rows 0 and 3 are equal in both: there the published gradient is c / 1e-12 with c rounding noise.
    sound = [row for row in range(len(student)) if row not in (0, 3)]
    difference = (got_gradient - want_gradient)[sound].abs().max()
    assert difference <= 1e-5 * want_gradient[sound].abs().max()


@pytest.mark.parametrize("cosines_at_once", [1, 40 * 7, 40 * 40 * 7, 2**30])
def test_chunks_of_anchors_change_nothing(cosines_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = realistic(40, 24, 64, 1.0)
    monkeypatch.setattr(angle_module, "COSINES_AT_ONCE", cosines_at_once)
    want = published.angle_wise(student.double(), teacher.double())
    assert angle_wise(student, teacher).item() == pytest.approx(want.item(), rel=1e-5)
    want_gradient = gradient_of(published.angle_wise, student.double(), teacher.double())[6:]
    got_gradient = gradient_of(angle_wise, student, teacher)[6:].double()
    assert (got_gradient - want_gradient).abs().max() <= 1e-5 * want_gradient.abs().max()


def test_large_angles_meet_the_linear_part_of_smooth_l1() -> None:
    # Opposite orders on a line: cosines of +1 meet cosines of -1, differences of 2.
    student = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    teacher = torch.tensor([[1.0], [0.0], [7.0], [3.0]])
    want = published.angle_wise(student.double(), teacher.double()).item()
    assert want > 0.1
    assert angle_wise(student, teacher).item() == pytest.approx(want, rel=1e-5)


def test_no_cosines_of_the_whole_batch_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    batch = 96
    student, teacher = draw(0, batch, 16).requires_grad_(), draw(1, batch, 32)
    with Watch():
        angle_wise(student, teacher).backward()
    assert 0 < largest <= 2 * max(batch**2, angle_module.COSINES_AT_ONCE) * 8


@pytest.mark.parametrize("cosines_at_once", [1, 40 * 7, 40 * 40 * 7])
def test_a_capped_pair_is_the_same_in_any_chunks(
    cosines_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = draw(0, 40, 24), draw(1, 40, 64)
    student[7] = student[6] + 1e-4 * draw(2, 24)
    want = gradient_of(angle_wise, student, teacher)
    monkeypatch.setattr(angle_module, "COSINES_AT_ONCE", cosines_at_once)
    got = gradient_of(angle_wise, student, teacher)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    literal = gradient_of(published.angle_wise, student.double(), teacher.double())
    assert (got[8:] - literal[8:]).abs().max() <= 1e-5 * literal[8:].abs().max()
