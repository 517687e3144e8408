"""The memory queue, the student's side of anchors, and neighbours among what is remembered."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import LossConfig, RelationsConfig
from pipeline.losses.neighbour_wise import neighbour_wise
from pipeline.training.memory_queue import MemoryQueue
from pipeline.training.relation_table import RelationTable
from pipeline.training.relations import Relations

DIM, TARGET, STORE_ROWS = 4, 3, 60


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(anchors: int = 3) -> RelationTable:
    generator = torch.Generator().manual_seed(9)
    neighbours = torch.randint(0, STORE_ROWS, (STORE_ROWS, 5), generator=generator).int()
    anchor_of = torch.randint(-1, anchors, (STORE_ROWS,), generator=generator).int()
    return RelationTable(neighbours, draw(8, anchors, TARGET), anchor_of)


def relations(loss: dict[str, Any] | None = None, **config: Any) -> Relations:
    weights = LossConfig(**(loss or {"anchor": 1.0, "neighbour": 1.0}))
    return Relations(weights, RelationsConfig(**config), DIM, TARGET, table()).train()


@pytest.mark.parametrize("rows", [1, 5, 16, 40])
def test_the_queue_is_a_deque(rows: int) -> None:
    """First in, first out, whatever the batches' lengths: Python's own deque of that length."""
    queue, want = MemoryQueue(rows, DIM, TARGET), deque[tuple[float, ...]](maxlen=rows)
    seen = 0
    for number, length in enumerate([3, 7, 1, 16, 40, 2, 90, 5]):
        embeddings, targets = draw(number, length, DIM), draw(100 + number, length, TARGET)
        index = torch.arange(seen, seen + length)
        queue.push(embeddings, targets, index)
        seen += length
        want.extend(tuple(row) for row in torch.cat([embeddings, targets, index[:, None]], dim=1).tolist())
        assert len(queue) == len(want)
        kept, of_kept, rows_kept = queue.remembered()
        found = torch.cat([kept, of_kept, rows_kept[:, None]], dim=1).tolist()
        assert sorted(map(tuple, found)) == sorted(want)


def test_the_queue_holds_no_gradient_and_no_bad_rows() -> None:
    queue = MemoryQueue(8, DIM, TARGET)
    embeddings = draw(0, 4, DIM).requires_grad_()
    queue.push(embeddings * 2, draw(1, 4, TARGET), torch.arange(4))
    assert not queue.remembered()[0].requires_grad
    spoilt = draw(2, 4, DIM)
    spoilt[1, 2] = float("nan")
    queue.push(spoilt, draw(3, 4, TARGET), torch.arange(4))
    assert len(queue) == 4


def test_what_was_read_stays_when_the_queue_goes_on() -> None:
    queue = MemoryQueue(4, DIM, TARGET)
    queue.push(draw(0, 4, DIM), draw(1, 4, TARGET), torch.arange(4))
    read, _, _ = queue.remembered()
    before = read.clone()
    queue.push(draw(2, 4, DIM), draw(3, 4, TARGET), torch.arange(4))
    assert torch.equal(read, before)


def test_a_restored_queue_goes_on_alike() -> None:
    first, second = MemoryQueue(6, DIM, TARGET), MemoryQueue(6, DIM, TARGET)
    for number in range(3):
        first.push(draw(number, 4, DIM), draw(50 + number, 4, TARGET), torch.arange(4))
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.push(draw(9, 4, DIM), draw(59, 4, TARGET), torch.arange(4))
    assert all(torch.equal(a, b) for a, b in zip(first.remembered(), second.remembered(), strict=True))


@pytest.mark.parametrize(("kind", "kept"), [("centres", 0.7), ("rows", 0.0)])
def test_the_students_side_of_an_anchor_is_the_average_of_its_rows(kind: str, kept: float) -> None:
    made = relations(anchor_kind=kind, anchor_momentum=0.7)
    anchor_of = table().anchor_of.tolist()
    want: dict[int, Tensor] = {}
    for number in range(5):
        embedding, index = draw(number, 8, DIM), torch.arange(8) * 7 % STORE_ROWS + number
        made.remember(embedding, index, draw(60 + number, 8, TARGET), made.past(embedding))
        for anchor in range(3):
            members = [
                row
                for row, place in zip(embedding, index.tolist(), strict=True)
                if anchor_of[place] == anchor
            ]
            if members:
                mean = torch.stack(members).mean(dim=0)
                want[anchor] = kept * want[anchor] + (1 - kept) * mean if anchor in want else mean
        assert made.seen.tolist() == [anchor in want for anchor in range(3)]
        for anchor, value in want.items():
            torch.testing.assert_close(made.student_anchors[anchor], value)


def test_the_same_batch_twice_meets_the_same_past_and_is_remembered_once() -> None:
    """Mixup compares a batch with its own targets and with its partners': the second time it must not see itself."""
    made = relations(queue_rows=32)
    first = draw(0, 6, DIM)
    made.remember(first, torch.arange(6), draw(1, 6, TARGET), made.past(first))
    batch = draw(2, 6, DIM)
    past = made.past(batch)
    made.remember(batch, torch.arange(6), draw(3, 6, TARGET), past)
    assert made.past(batch) is past
    assert len(past.embeddings) == 6
    made.remember(batch, torch.arange(6).flip(0), draw(3, 6, TARGET), past)
    assert len(made.queue) == 12
    assert len(made.past(batch.clone()).embeddings) == 12


def test_neighbours_are_looked_for_in_the_batch_and_the_queue() -> None:
    made = relations({"neighbour": 2.0, "feature": 0.0}, queue_rows=20, neighbour_temperature=0.3)
    older, older_rows = draw(0, 12, DIM), torch.arange(12)
    made.remember(older, older_rows, draw(1, 12, TARGET), made.past(older))
    batch, index = draw(2, 8, DIM).requires_grad_(), torch.arange(8, 16)
    total, terms = made(batch, index, draw(3, 8, TARGET), made.past(batch))
    candidates, rows = torch.cat([batch, older]), torch.cat([index, older_rows])
    of_row = table().neighbours.tolist()
    near = torch.tensor([[other in of_row[row] for other in rows.tolist()] for row in index.tolist()])
    itself = index[:, None] == rows[None, :]
    want = neighbour_wise(batch, candidates, near, itself, 0.3)
    torch.testing.assert_close(terms["neighbour"], want.detach())
    torch.testing.assert_close(total, 2 * want)
    assert near.any()


def test_evaluation_uses_and_remembers_nothing() -> None:
    made = relations(queue_rows=16)
    batch = draw(0, 6, DIM)
    made.remember(batch, torch.arange(6), draw(1, 6, TARGET), made.past(batch))
    made.eval()
    assert not len(made.past(draw(2, 6, DIM)).embeddings)
    _, terms = made(batch, torch.arange(6), draw(3, 6, TARGET), made.past(draw(4, 6, DIM)))
    assert terms.keys() == {"anchor"}
    made.train()
    with torch.no_grad():
        assert not made.active
