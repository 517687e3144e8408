"""The objective: several teachers, memory, compression; literal formulas and whose gradient goes where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import LossConfig, RelationsConfig, TargetsConfig
from pipeline.losses.cosine_wise import cosine_wise
from pipeline.losses.distance_wise import distance_wise
from pipeline.losses.feature_wise import feature_wise
from pipeline.neighbours import neighbour_overlap
from pipeline.training.compression import Compression
from pipeline.training.objective import DistilObjective
from pipeline.training.relation_table import relation_table
from pipeline.training.relations import Relations
from pipeline.training.targets import TargetTransform

BATCH, DIM, WIDTHS = 8, 5, (6, 4)
INDEX = torch.arange(BATCH)
NOTHING: dict[str, Any] = {"feature": 0.0}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transform(widths: tuple[int, ...] = WIDTHS) -> TargetTransform:
    """The identity, of teachers side by side."""
    empty = torch.zeros(0, 0)
    return TargetTransform("none", torch.zeros(sum(widths)), torch.ones(sum(widths)), empty, empty, widths)


def objective(
    loss: dict[str, Any], widths: tuple[int, ...] = WIDTHS, dim: int = DIM, **targets: Any
) -> DistilObjective:
    torch.manual_seed(0)
    return DistilObjective(
        dim, transform(widths), LossConfig(**loss), TargetsConfig(fusion="heads", **targets)
    ).train()


def test_a_head_a_teacher_is_the_weighted_sum_of_their_losses() -> None:
    made = objective({"feature": 1.0, "distance": 2.0}, teacher_weights=(1.0, 3.0))
    embedding, teacher = draw(0, BATCH, DIM), draw(1, BATCH, 10)
    total, terms = made(embedding, INDEX, teacher)
    weight, bias = made.head.linear.weight.split(WIDTHS), made.head.linear.bias.split(WIDTHS)
    wanted = torch.zeros(())
    for share, w, b, target in zip((0.5, 1.5), weight, bias, teacher.split(WIDTHS, dim=1), strict=True):
        row = feature_wise(embedding @ w.T + b, target)
        wanted = wanted + share * (row + 2 * distance_wise(embedding, target))
    torch.testing.assert_close(total, wanted)
    assert terms.keys() == {"feature", "feature_0", "feature_1", "distance", "distance_0", "distance_1"}
    torch.testing.assert_close(terms["feature"], 0.5 * terms["feature_0"] + 1.5 * terms["feature_1"])


@pytest.mark.parametrize("term", ["distance", "cosine"])
def test_teachers_relations_together_are_their_mean_matrix(term: str) -> None:
    """The gradient of the summed losses is that of half the squared distance to the mean of the teachers'
    matrices (each distance matrix over its own mean), though the teachers' widths differ."""
    # Wide rows, whose distances differ by less than 1: above that smooth L1 is no square.
    widths = (60, 40)
    made = objective({**NOTHING, term: 1.0}, widths, 50, teacher_weights=(1.0, 3.0))
    embedding, teacher = draw(0, BATCH, 50).double().requires_grad_(), draw(1, BATCH, 100).double()
    total, _ = made(embedding, INDEX, teacher)

    def matrix(rows: Tensor) -> Tensor:
        if term == "cosine":
            unit = nn.functional.normalize(rows, dim=1)
            return unit @ unit.T
        # Rows apart from themselves alone: the root has no gradient at 0.
        apart = ~torch.eye(len(rows), dtype=torch.bool)
        squares = (rows[:, None] - rows[None]).square().sum(dim=2)
        distances = torch.where(apart, squares, torch.ones_like(squares)).sqrt() * apart
        return distances / distances[apart].mean()

    of_teachers = [matrix(part) for part in teacher.split(widths, dim=1)]
    assert max(float((matrix(embedding) - one).detach().abs().max()) for one in of_teachers) < 1
    mean = 0.25 * of_teachers[0] + 0.75 * of_teachers[1]
    # Their weights' mean is 1, so the sum over two teachers is twice the mean.
    factor = {"distance": 0.5, "cosine": 1.0}[term] * 2
    literal = factor * (matrix(embedding) - mean).square().mean()
    got, want = (torch.autograd.grad(value, embedding)[0] for value in (total, literal))
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-6)


def test_one_teacher_is_as_ever() -> None:
    made = objective({"feature": 1.0, "cosine": 3.0}, widths=(10,))
    embedding, teacher = draw(0, BATCH, DIM), draw(1, BATCH, 10)
    total, terms = made(embedding, INDEX, teacher)
    wanted = feature_wise(made.head(embedding), teacher) + 3 * cosine_wise(embedding, teacher)
    torch.testing.assert_close(total, wanted)
    assert terms.keys() == {"feature", "cosine"}


def _rows_against_all(rows: Tensor, targets: Tensor) -> Tensor:
    """Cosines of the first ``BATCH`` rows with all of them, against the targets'."""
    got, want = (nn.functional.normalize(one, dim=1) for one in (rows, targets))
    return (got[:BATCH] @ got.T - want[:BATCH] @ want.T).square().mean()


@pytest.mark.parametrize("related", ["embedding", "projection"])
def test_relational_terms_see_the_queue_and_others_do_not(related: str) -> None:
    loss = LossConfig(cosine=1.0, feature=1.0, relational_on=related)
    torch.manual_seed(0)
    queue = Relations(loss, RelationsConfig(queue_rows=50), DIM, 10)
    made = DistilObjective(DIM, transform(), loss, TargetsConfig(fusion="heads"), relations=queue).train()
    older, older_teacher = draw(2, BATCH, DIM), draw(3, BATCH, 10)
    made(older, INDEX, older_teacher)
    embedding, teacher = draw(0, BATCH, DIM).requires_grad_(), draw(1, BATCH, 10)
    total, terms = made(embedding, INDEX, teacher)
    rows, targets = torch.cat([embedding, older]), torch.cat([teacher, older_teacher])
    seen = made.head(rows).split(WIDTHS, dim=1) if related == "projection" else [rows, rows]
    want = [_rows_against_all(s, t) for s, t in zip(seen, targets.split(WIDTHS, dim=1), strict=True)]
    torch.testing.assert_close(terms["cosine"], sum(want).detach())
    of_batch = zip(made.head(embedding).split(WIDTHS, dim=1), teacher.split(WIDTHS, dim=1), strict=True)
    torch.testing.assert_close(terms["feature"], sum(feature_wise(p, t) for p, t in of_batch).detach())
    assert torch.autograd.grad(total, embedding)[0].abs().sum() > 0
    made.eval()
    _, alone = made(embedding, INDEX, teacher)
    alone_rows = made.head(embedding).split(WIDTHS, dim=1) if related == "projection" else [embedding] * 2
    parts = zip(alone_rows, teacher.split(WIDTHS, dim=1), strict=True)
    torch.testing.assert_close(alone["cosine"], sum(cosine_wise(s, t) for s, t in parts).detach())


def compressed(kind: str, loss: dict[str, Any], head: str = "none") -> DistilObjective:
    torch.manual_seed(0)
    codes = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1])

    def label_loss(logits: Tensor, index: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, codes[index], ignore_index=-1)

    targets = TargetsConfig(fusion="heads", compression=kind, head=head, compression_weight=2.0)
    compression = Compression(targets, WIDTHS, DIM, 3, label_loss)
    return DistilObjective(DIM, transform(), LossConfig(**loss), targets, compression=compression).train()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_transformation_learns_from_labels_alone(kind: str) -> None:
    """Its gradient is that of the label loss, whatever the distance term weighs; the student's has none of it."""
    embedding, teacher = draw(0, BATCH, DIM), draw(1, BATCH, 10)
    gradients = []
    for weight in (0.0, 1.0, 100.0):
        made = compressed(kind, {"feature": weight, "distance": 1e-9})
        student = embedding.clone().requires_grad_()
        total, terms = made(student, INDEX, teacher)
        total.backward()
        assert made.compression is not None
        gradients.append(torch.cat([p.grad.flatten() for p in made.compression.parameters()]))
        assert (student.grad.abs().sum() > 1e-6) == (weight > 0)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])
    alone = made.compression
    alone.zero_grad()
    (2.0 * alone.label_term(alone(teacher), INDEX)).backward()
    wanted = torch.cat([p.grad.flatten() for p in alone.parameters()])
    torch.testing.assert_close(gradients[0], wanted)
    assert terms["compression_labels"] > 0


def test_the_student_follows_the_compressed_embedding() -> None:
    made = compressed("linear", {"feature": 1.0, "feature_kind": "mse"})
    embedding, teacher = draw(0, BATCH, DIM), draw(1, BATCH, 10)
    assert made.widths == (DIM, DIM)
    _, terms = made(embedding, INDEX, teacher)
    wanted = torch.zeros(())
    for linear, part in zip(made.compression.transforms, teacher.split(WIDTHS, dim=1), strict=True):
        wanted = wanted + (embedding - (part @ linear.weight.T + linear.bias)).square().mean()
    torch.testing.assert_close(terms["feature"], wanted.detach())


def test_validation_counts_no_label_loss_of_the_teacher() -> None:
    made = compressed("linear", {"feature": 1.0}).eval()
    with torch.no_grad():
        total, terms = made(draw(0, BATCH, DIM), INDEX, draw(1, BATCH, 10))
    torch.testing.assert_close(total, terms["feature"])
    assert terms["compression_labels"] > 0


@pytest.mark.parametrize(
    "changes",
    [{"loss": {"anchor": 1.0}}, {"loss": {"neighbour": 1.0}}, {"loss": {"distance": 1.0}}],
    ids=["anchors", "neighbours", "memory"],
)
def test_relations_beyond_the_batch_alone_teach_who_is_near_whom(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """A linear student of noisy rows, in batches of 8 of 240 rows, ends nearer to the teacher's neighbourhoods."""
    latent = draw(0, 240, 6)
    teacher = latent @ draw(1, 6, 10) + 0.05 * draw(2, 240, 10)
    heard = torch.cat([latent, 2.0 * draw(3, 240, 18)], dim=1)
    config = RelationsConfig(queue_rows=64, anchors=24, neighbours=8)
    loss = LossConfig(**NOTHING, **changes["loss"])
    table = relation_table(
        tmp_path, lambda: iter([teacher.numpy()]), np.ones(240, dtype=bool), config, {}, anchors=True,
        neighbours=True,
    )  # fmt: skip
    torch.manual_seed(0)
    made = DistilObjective(8, transform((10,)), loss, relations=Relations(loss, config, 8, 10, table)).train()
    student = nn.Linear(24, 8)
    before = neighbour_overlap(student(heard), teacher)
    optimiser = torch.optim.Adam(student.parameters(), lr=0.02)
    for step in range(240):
        rows = torch.randperm(240, generator=torch.Generator().manual_seed(step))[:8]
        optimiser.zero_grad()
        made(student(heard[rows]), rows, teacher[rows])[0].backward()
        optimiser.step()
    assert neighbour_overlap(student(heard), teacher) > before + 0.15
