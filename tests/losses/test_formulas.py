"""Values and gradients against the papers' formulas written out, in float64 and for float32 inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses.contrastive import contrastive
from pipeline.losses.distance_correlation import distance_correlation, distance_correlation_over_time
from pipeline.losses.hinton import hinton, soft_targets
from pipeline.losses.kernel_alignment import kernel_alignment
from pipeline.losses.labels import label_loss
from pipeline.losses.similarity_preserving import similarity_preserving
from pipeline.losses.teacher_tags import teacher_tags
from tests.losses import published
from tests.losses.test_laws import draw, gradient_of
from tests.losses.test_published import realistic

Loss = Callable[[Tensor, Tensor], Tensor]
CLUSTERS = torch.tensor([0, 1, 1, 0, 2, 1, 0, 2, 2, 0, 1, 3])


def _contrastive(kind: str, masked: str = "published") -> tuple[Loss, Loss]:
    return (
        lambda s, t: contrastive(s, t, kind, 0.2, CLUSTERS, masked),  # type: ignore[arg-type]
        lambda s, t: published.contrastive(s, t, kind, 0.2, CLUSTERS, masked),
    )


def _kernel(**options: object) -> tuple[Loss, Loss]:
    return (
        lambda s, t: kernel_alignment(s, t, **options),  # type: ignore[arg-type]
        lambda s, t: published.kernel_alignment(s, t, **options),  # type: ignore[arg-type]
    )


RELATIONAL: dict[str, tuple[Loss, Loss]] = {
    "distance_correlation": (distance_correlation, published.distance_correlation),
    "scale_free": (
        lambda s, t: distance_correlation(s, t, "scale_free"),
        lambda s, t: published.distance_correlation(s, t, 0.0),
    ),
    "similarity_preserving": (similarity_preserving, published.similarity_preserving),
    "kernel_linear": _kernel(),
    "kernel_unbiased": _kernel(unbiased=True),
    "kernel_rbf_unbiased": _kernel(kernel="rbf", bandwidth=0.7, unbiased=True),
}
SAME_WIDTH: dict[str, tuple[Loss, Loss]] = {
    "clap": _contrastive("clap"),
    "decoupled": _contrastive("decoupled"),
    "cluster_negatives": _contrastive("cluster_negatives"),
    "cluster_negatives_excluded": _contrastive("cluster_negatives", "excluded"),
    "cluster_aware": _contrastive("cluster_aware"),
    "cluster_aware_excluded": _contrastive("cluster_aware", "excluded"),
    "soft_targets": (lambda s, t: soft_targets(s, t, 3.0), lambda s, t: published.soft_targets(s, t, 3.0)),
    "soft_targets_mean": (
        lambda s, t: soft_targets(s, t, 3.0, "mean"),
        lambda s, t: published.soft_targets(s, t, 3.0) / s.shape[1],
    ),
    "tags_bce": (
        lambda s, t: teacher_tags(s, t, "bce", 2.0),
        lambda s, t: published.binary_cross_entropy(s, 1 / (1 + (-t / 2).exp())),
    ),
    "tags_binary_kl": (
        lambda s, t: teacher_tags(s, t, "binary_kl", 2.0),
        lambda s, t: published.binary_kl(s, t, 2.0),
    ),
}  # fmt: skip


def _assert_equal(pair: tuple[Loss, Loss], student: Tensor, teacher: Tensor) -> None:
    ours, literal = pair
    want = literal(student.double(), teacher.double()).item()
    want_gradient = gradient_of(literal, student.double(), teacher.double())
    for dtype, allowed in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        assert ours(student.to(dtype), teacher.to(dtype)).item() == pytest.approx(want, rel=allowed)
        difference = gradient_of(ours, student.to(dtype), teacher.to(dtype)).double() - want_gradient
        assert difference.abs().max() <= allowed * want_gradient.abs().max()


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("batch", [6, 33])
@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_losses_are_their_formulas(name: str, batch: int, offset: float) -> None:
    student, teacher = (rows.double() for rows in realistic(batch, 24, 64, offset))
    if name in ("scale_free", "kernel_rbf_unbiased"):
        # Without the constant under the root the literal distance of equal rows has no gradient.
        student[3], teacher[3] = student[2] + 1.0, teacher[2] + 1.0
        teacher[5] = teacher[4] - 1.0
    ours, literal = RELATIONAL[name]
    want = literal(student, teacher).item()
    want_gradient = gradient_of(literal, student, teacher)
    # Scale-free, the constant of 1e-12 under each distance's root stands beside unit-sized rows, not these.
    allowed = 1e-6 if name in ("scale_free", "distance_correlation") else 1e-9
    assert ours(student, teacher).item() == pytest.approx(want, rel=allowed)
    difference = (gradient_of(ours, student, teacher) - want_gradient).abs().max()
    assert difference <= allowed * want_gradient.abs().max()
    assert ours(student.float(), teacher.float()).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", SAME_WIDTH)
def test_losses_of_rows_and_classes_are_their_formulas(name: str) -> None:
    _assert_equal(SAME_WIDTH[name], draw(0, 12, 7), draw(1, 12, 7))


def test_linear_cka_is_one_minus_the_normalised_cross_covariance() -> None:
    # Kornblith et al., equation 4's feature form: |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F), centred.
    x, y = draw(0, 30, 5).double(), draw(1, 30, 9).double()
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    norm = torch.linalg.matrix_norm
    want = 1 - norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    assert kernel_alignment(x, y).item() == pytest.approx(want.item(), rel=1e-9)


def test_the_unbiased_estimate_does_not_fall_with_the_batch() -> None:
    x, y = draw(0, 4_000, 40), draw(1, 4_000, 40)
    biased, unbiased = (
        [kernel_alignment(a, b, unbiased=u).item() for a, b in zip(x.split(20), y.split(20), strict=True)]
        for u in (False, True)
    )
    # Nothing is aligned: the unbiased loss is 1 on average, the biased one far below it.
    assert sum(unbiased) / len(unbiased) == pytest.approx(1.0, abs=0.01)
    assert sum(biased) / len(biased) < 0.5


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@pytest.mark.parametrize("kind", ["clap", "decoupled", "cluster_negatives", "cluster_aware"])
@pytest.mark.parametrize("masked", ["published", "excluded"])
def test_contrastive_losses_are_finite_at_any_temperature(kind: str, temperature: float, masked: str) -> None:
    student, teacher = draw(0, 12, 7), draw(1, 12, 7)
    loss: Loss = lambda s, t: contrastive(s, t, kind, temperature, CLUSTERS, masked)  # type: ignore[arg-type] # noqa: E731
    assert loss(student, teacher).isfinite()
    assert gradient_of(loss, student, teacher).isfinite().all()


def test_one_cluster_of_all_leaves_nothing_to_attract_or_repel() -> None:
    student, teacher = draw(0, 6, 7), draw(1, 6, 7)
    for clusters in (torch.zeros(6, dtype=torch.long), torch.arange(6)):
        loss: Loss = lambda s, t, c=clusters: contrastive(s, t, "cluster_aware", 0.1, c, "excluded")  # type: ignore[misc] # noqa: E731
        assert loss(student, teacher).item() == 0.0
        assert gradient_of(loss, student, teacher).abs().max() == 0.0


def test_cluster_kinds_without_clusters_and_temperatures_of_zero_are_refused() -> None:
    student, teacher = draw(0, 6, 7), draw(1, 6, 7)
    with pytest.raises(ConfigError, match="cluster of each row"):
        contrastive(student, teacher, "cluster_aware")
    for refused in (
        lambda: contrastive(student, teacher, temperature=0.0),
        lambda: soft_targets(student, teacher, 0.0),
        lambda: teacher_tags(student, teacher, temperature=-1.0),
        lambda: kernel_alignment(student, teacher, "rbf", bandwidth=0.0),
    ):
        with pytest.raises(ConfigError, match="> 0"):
            refused()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_both_conventions_of_alpha_are_each_others_mirror_image(alpha: float) -> None:
    student, teacher = draw(0, 12, 7), draw(1, 12, 7)
    labels = torch.arange(12) % 7
    hard = torch.nn.functional.cross_entropy(student, labels).item()
    soft = published.soft_targets(student, teacher, 2.0).item()
    of_labels = hinton(student, teacher, labels, alpha=alpha, alpha_weighs="labels", temperature=2.0).item()
    of_teacher = hinton(student, teacher, labels, alpha=alpha, alpha_weighs="teacher", temperature=2.0).item()
    assert of_labels == pytest.approx(alpha * hard + (1 - alpha) * soft, rel=1e-5)
    assert of_teacher == pytest.approx((1 - alpha) * hard + alpha * soft, rel=1e-5)


def test_hinton_refuses_a_part_that_is_absent_and_takes_one_without_a_share() -> None:
    student, teacher, labels = draw(0, 4, 3), draw(1, 4, 3), torch.tensor([0, 1, 2, 0])
    assert hinton(student, None, labels, alpha=1.0, alpha_weighs="labels").item() > 0
    assert hinton(student, teacher, None, alpha=1.0, alpha_weighs="teacher").item() > 0
    with pytest.raises(ConfigError, match="labels have a share"):
        hinton(student, teacher, None, alpha=0.1, alpha_weighs="labels")
    with pytest.raises(ConfigError, match="alpha is the share"):
        hinton(student, teacher, labels, alpha=1.5, alpha_weighs="labels")
    with pytest.raises((ConfigError, TypeError)):
        soft_targets(student, draw(1, 4, 5))


def test_soft_targets_are_zero_at_the_teacher_and_blind_to_a_constant_on_a_row() -> None:
    student, teacher = draw(0, 12, 7), draw(1, 12, 7)
    assert soft_targets(teacher, teacher, 2.0).item() == pytest.approx(0.0, abs=1e-7)
    want = soft_targets(student, teacher, 2.0).item()
    moved = soft_targets(student + draw(2, 12, 1), teacher - draw(3, 12, 1), 2.0).item()
    assert moved == pytest.approx(want, rel=1e-4)


def test_labels_of_rows_without_any_do_not_count() -> None:
    logits = draw(0, 5, 4)
    codes = torch.tensor([2, -1, 0, -1, 3])
    want = torch.nn.functional.cross_entropy(logits[[0, 2, 4]], codes[[0, 2, 4]]).item()
    assert label_loss(logits, codes).item() == pytest.approx(want, rel=1e-6)
    several = torch.tensor([[1, 0, 0, 1], [-1, -1, -1, -1], [0, 1, 0, 0], [-1, -1, -1, -1], [1, 1, 0, 0]])
    known = published.binary_cross_entropy(logits[[0, 2, 4]], several[[0, 2, 4]].float()).item()
    assert label_loss(logits, several, "bce").item() == pytest.approx(known, rel=1e-5)
    nobody: Loss = lambda s, _: label_loss(s, torch.full((5,), -1))  # noqa: E731
    assert nobody(logits, logits).item() == 0.0
    assert gradient_of(nobody, logits, logits).abs().max() == 0.0


def test_smoothed_labels_are_the_mixture_with_every_class() -> None:
    logits, codes = draw(0, 5, 4), torch.tensor([2, 1, 0, 1, 3])
    every = -logits.log_softmax(dim=1).mean(dim=1).mean().item()
    want = 0.9 * label_loss(logits, codes).item() + 0.1 * every
    assert label_loss(logits, codes, smoothing=0.1).item() == pytest.approx(want, rel=1e-5)


def test_labels_of_the_other_kind_are_refused() -> None:
    with pytest.raises((ConfigError, TypeError)):
        label_loss(draw(0, 5, 4), torch.zeros(5), "cross_entropy")
    with pytest.raises(ConfigError, match="labels of another form"):
        label_loss(draw(0, 5, 4), torch.zeros(5, 3), "bce")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SAME_WIDTH)
def test_half_precision_logits_are_compared_in_float32(name: str, dtype: torch.dtype) -> None:
    ours, _ = SAME_WIDTH[name]
    student, teacher = 20 * draw(0, 12, 7).to(dtype), 20 * draw(1, 12, 7).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ours(student, teacher)
        gradient = gradient_of(ours, student, teacher)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(ours(student.float(), teacher.float()).item(), rel=1e-6)
    assert gradient.isfinite().all()


def test_sequences_are_compared_frame_by_frame_or_by_their_means() -> None:
    student, teacher = draw(0, 8, 5, 6), draw(1, 8, 11, 9)
    means = distance_correlation_over_time(student, teacher).item()
    assert means == pytest.approx(
        distance_correlation(student.mean(dim=1), teacher.mean(dim=1)).item(), rel=1e-6
    )
    each = [distance_correlation(student[:, t // 2], teacher[:, t]).item() for t in range(10)]
    got = distance_correlation_over_time(student, teacher, 2, 1).item()
    assert got == pytest.approx(sum(each) / 10, rel=1e-5)
    with pytest.raises(ConfigError, match="both sides or on neither"):
        distance_correlation_over_time(student, teacher, 2)
