"""Losses that see beyond the batch: remembered rows, anchors, neighbours; literal formulas and laws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses.anchor_wise import anchor_wise
from pipeline.losses.beside_memory import cosine_beside, distance_beside
from pipeline.losses.cosine_wise import cosine_wise
from pipeline.losses.distance_wise import distance_wise
from pipeline.losses.memory import Memory
from pipeline.losses.neighbour_wise import neighbour_wise

Loss = Callable[[Tensor, Tensor, Memory], Tensor]
seeds = st.integers(0, 2**31 - 1)
laws = settings(max_examples=15, deadline=None)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(value: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(value, of)[0]


@laws
@given(seeds, st.integers(3, 12), st.integers(1, 4))
def test_memory_of_the_batch_itself_changes_no_gradient(seed: int, batch: int, copies: int) -> None:
    """A weight means the same with any memory: rows that stand there several times change no mean over pairs."""
    student, teacher = draw(seed, batch, 6).requires_grad_(), draw(seed + 1, batch, 9)
    memory = Memory(student.detach().repeat(copies, 1), teacher.repeat(copies, 1))
    wanted = gradient(cosine_wise(student, teacher), student)
    rows, targets = memory.extended(student, teacher)
    assert rows.shape == ((copies + 1) * batch, 6)
    value = cosine_wise(rows, targets)
    torch.testing.assert_close(value, cosine_wise(student, teacher))
    torch.testing.assert_close(gradient(value, student), wanted, rtol=1e-6, atol=1e-9)


@laws
@given(seeds, st.integers(1, 20))
def test_values_with_memory_are_those_of_one_larger_batch(seed: int, remembered: int) -> None:
    student, teacher = draw(seed, 7, 5).requires_grad_(), draw(seed + 1, 7, 8)
    older = draw(seed + 2, remembered, 5).requires_grad_()
    rows, targets = Memory(older, draw(seed + 3, remembered, 8)).extended(student, teacher)
    whole = torch.cat([student, older])
    value = distance_wise(rows, targets)
    torch.testing.assert_close(value, distance_wise(whole, targets))
    # The gradient is the large batch's, restricted to the batch and scaled to a mean over its rows.
    wanted = gradient(distance_wise(whole, targets), student) * (7 + remembered) / 7
    torch.testing.assert_close(gradient(value, student), wanted)
    assert older.grad is None


@laws
@given(seeds, st.integers(2, 9), st.integers(1, 20), st.sampled_from(["mse", "smooth_l1", "l1"]))
def test_cosine_beside_has_the_gradient_of_the_whole_matrix(
    seed: int, batch: int, remembered: int, kind: str
) -> None:
    student, teacher = draw(seed, batch, 5).requires_grad_(), draw(seed + 1, batch, 8)
    memory = Memory(draw(seed + 2, remembered, 5), draw(seed + 3, remembered, 8))
    whole = cosine_wise(*memory.extended(student, teacher), kind)
    beside = cosine_beside(student, teacher, memory, kind)
    torch.testing.assert_close(gradient(beside, student), gradient(whole, student), rtol=1e-6, atol=1e-12)
    unit, past = (torch.nn.functional.normalize(x.detach(), dim=1) for x in (student, memory.rows))
    of_teacher, of_past = (torch.nn.functional.normalize(x, dim=1) for x in (teacher, memory.targets))
    difference = unit @ torch.cat([unit, past]).T - of_teacher @ torch.cat([of_teacher, of_past]).T
    literal = {
        "mse": difference.square().mean(), "l1": difference.abs().mean(),
        "smooth_l1": torch.where(difference.abs() < 1, difference.square() / 2, difference.abs() - 0.5).mean(),
    }[kind]  # fmt: skip
    torch.testing.assert_close(beside.detach(), literal)


@laws
@given(seeds, st.integers(2, 9), st.integers(1, 20))
def test_distance_beside_is_its_formula(seed: int, batch: int, remembered: int) -> None:
    student, teacher = draw(seed, batch, 5).requires_grad_(), draw(seed + 1, batch, 8)
    memory = Memory(draw(seed + 2, remembered, 5), draw(seed + 3, remembered, 8))

    def relative(rows: list[Tensor], others: Tensor) -> Tensor:
        # Pairs that stand for two have twice the gradient: the row counts twice, less once its value.
        own = [[torch.dist(a, b) if a is not b else a.sum() * 0 for b in rows] for a in rows]
        past = [[torch.dist(2 * a - a.detach(), b) for b in others] for a in rows]
        whole = torch.stack([torch.stack(near + far) for near, far in zip(own, past, strict=True)])
        return whole / (whole.sum() / (whole.numel() - len(rows)))

    # The rows one by one, so that each is the same tensor in both loops.
    leaves = [row.clone().requires_grad_() for row in student.detach()]
    literal = torch.nn.functional.smooth_l1_loss(
        relative(leaves, memory.rows), relative(list(teacher), memory.targets)
    )
    value = distance_beside(student, teacher, memory)
    torch.testing.assert_close(value, literal)
    wanted = torch.stack(torch.autograd.grad(literal, leaves))
    torch.testing.assert_close(gradient(value, student), wanted, rtol=1e-5, atol=1e-9)


@laws
@given(seeds, st.floats(0.01, 100))
def test_beside_memory_sees_no_shift_rotation_or_scale(seed: int, scale: float) -> None:
    student, teacher = draw(seed, 5, 4), draw(seed + 1, 5, 6)
    memory = Memory(draw(seed + 2, 7, 4), draw(seed + 3, 7, 6))
    rotation, shift = torch.linalg.qr(draw(seed + 4, 4, 4))[0], draw(seed + 5, 1, 4)
    turned = Memory(scale * memory.rows @ rotation, memory.targets)
    moved = Memory(turned.rows + shift, memory.targets)
    turned_student = scale * student @ rotation
    torch.testing.assert_close(
        distance_beside(turned_student + shift, teacher, moved), distance_beside(student, teacher, memory)
    )
    torch.testing.assert_close(
        cosine_beside(turned_student, teacher, turned), cosine_beside(student, teacher, memory)
    )
    same = Memory(memory.targets * scale, memory.targets)
    for loss in (distance_beside, cosine_beside):
        zero = loss(teacher * scale, teacher, same)
        torch.testing.assert_close(zero, torch.zeros_like(zero), atol=1e-10, rtol=0)


@pytest.mark.parametrize("loss", [distance_beside, cosine_beside])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_memory_is_finite_on_rows_that_coincide(loss: Loss, dtype: torch.dtype) -> None:
    for student in (torch.zeros(3, 4), torch.ones(3, 4), torch.eye(4)[[0, 0, 1]], torch.zeros(1, 4)):
        student = student.to(dtype).requires_grad_()
        teacher = draw(0, len(student), 6).to(dtype)
        for past in (torch.zeros(2, 4), torch.ones(2, 4)):
            value = loss(student, teacher, Memory(past, draw(1, 2, 6).float()))
            assert torch.isfinite(value)
            assert torch.isfinite(gradient(value, student)).all()


def test_empty_memory_is_no_memory_and_other_widths_are_refused() -> None:
    student, teacher = draw(0, 4, 5), draw(1, 4, 8)
    rows, targets = Memory(student[:0], teacher[:0]).extended(student, teacher)
    assert rows is student
    assert targets is teacher
    with pytest.raises(ConfigError, match="other widths"):
        Memory(draw(2, 3, 6), draw(3, 3, 8)).extended(student, teacher)


@laws
@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_anchor_wise_is_its_formula(seed: int, batch: int, anchors: int) -> None:
    student, teacher, ours, theirs = (
        draw(seed + n, rows, width)
        for n, (rows, width) in enumerate([(batch, 4), (batch, 7), (anchors, 4), (anchors, 7)])
    )
    one, two = (cdist(rows.numpy(), points.numpy()) for rows, points in ((student, ours), (teacher, theirs)))
    difference = abs(one / one.mean() - two / two.mean())
    wanted = [0.5 * d * d if d < 1 else d - 0.5 for d in difference.ravel()]
    got = anchor_wise(student, teacher, ours, theirs)
    torch.testing.assert_close(got, torch.tensor(sum(wanted) / len(wanted), dtype=torch.float64))


@laws
@given(seeds, st.floats(0.01, 100))
def test_anchor_wise_sees_no_shift_rotation_or_scale(seed: int, scale: float) -> None:
    student, teacher, ours, theirs = (
        draw(seed, 6, 5),
        draw(seed + 1, 6, 8),
        draw(seed + 2, 3, 5),
        draw(seed + 3, 3, 8),
    )
    rotation = torch.linalg.qr(draw(seed + 4, 5, 5))[0]
    shift = draw(seed + 5, 1, 5)
    moved = anchor_wise(scale * student @ rotation + shift, teacher, scale * ours @ rotation + shift, theirs)
    torch.testing.assert_close(moved, anchor_wise(student, teacher, ours, theirs))
    same = anchor_wise(scale * teacher, teacher, scale * theirs, theirs)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-12, rtol=0)


def test_anchor_wise_is_finite_where_it_has_nothing_to_say() -> None:
    for student, ours in ((torch.ones(4, 3), torch.ones(2, 3)), (draw(0, 4, 3).float(), torch.zeros(0, 3))):
        student = student.clone().requires_grad_()
        value = anchor_wise(student, draw(1, 4, 6).float(), ours, draw(2, len(ours), 6).float())
        assert torch.isfinite(value)
        assert torch.isfinite(gradient(value, student)).all()


@laws
@given(seeds, st.integers(2, 8), st.integers(0, 9), st.floats(0.05, 2))
def test_neighbour_wise_is_its_formula(seed: int, batch: int, remembered: int, temperature: float) -> None:
    student = draw(seed, batch, 4)
    candidates = torch.cat([student, draw(seed + 1, remembered, 4)])
    generator = torch.Generator().manual_seed(seed)
    near = torch.rand(batch, batch + remembered, generator=generator) < 0.3
    itself = torch.eye(batch, batch + remembered, dtype=torch.bool)
    losses = []
    for i in range(batch):
        cosines = torch.cosine_similarity(student[i][None], candidates, dim=1) / temperature
        others = [j for j in range(len(candidates)) if not itself[i, j]]
        ours = [j for j in others if near[i, j]]
        if ours:
            weights = cosines.exp()
            losses.append(-torch.log(sum(weights[j] for j in ours) / sum(weights[j] for j in others)))
    wanted = torch.stack(losses).mean() if losses else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(
        neighbour_wise(student, candidates, near, itself, temperature).double(), wanted, rtol=1e-6, atol=1e-9
    )


def test_neighbour_wise_draws_neighbours_near() -> None:
    """Descending it alone makes the marked neighbours the nearest, whatever the start."""
    student = draw(3, 12, 6).requires_grad_()
    near = torch.zeros(12, 12, dtype=torch.bool)
    near[torch.arange(12), torch.arange(12) ^ 1] = True
    itself = torch.eye(12, dtype=torch.bool)
    optimiser = torch.optim.Adam([student], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        neighbour_wise(student, student, near, itself).backward()
        optimiser.step()
    unit = torch.nn.functional.normalize(student.detach(), dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    assert torch.equal(cosines.argmax(dim=1), torch.arange(12) ^ 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbour_wise_is_finite_without_neighbours_and_on_zero_rows(dtype: torch.dtype) -> None:
    itself = torch.eye(3, dtype=torch.bool)
    for near in (torch.zeros(3, 3, dtype=torch.bool), ~itself, itself):
        student = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]], dtype=dtype, requires_grad=True)
        value = neighbour_wise(student, student, near, itself)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient(value, student)).all()
