"""The weighted sum: weights, which term looks where, what is logged, what is refused."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import LossConfig
from pipeline.errors import ConfigError
from pipeline.losses.angle_wise import angle_wise
from pipeline.losses.contrastive import contrastive
from pipeline.losses.cosine_wise import cosine_wise
from pipeline.losses.distance_correlation import distance_correlation
from pipeline.losses.distance_wise import distance_wise
from pipeline.losses.feature_wise import feature_wise
from pipeline.losses.kernel_alignment import kernel_alignment
from pipeline.losses.similarity_preserving import similarity_preserving
from pipeline.losses.weighted import WeightedLoss
from pipeline.losses.weighted_classes import WeightedClassLoss
from tests.losses.test_laws import draw

EMBEDDING, PROJECTION, TARGET = draw(0, 12, 6), draw(1, 12, 9), draw(2, 12, 9)


def test_total_is_the_weighted_sum_and_terms_are_unweighted() -> None:
    config = LossConfig(
        distance=0.5, angle=2, cosine=3, feature=0.25, cosine_kind="l1", feature_kind="smooth_l1"
    )
    total, terms = WeightedLoss(config)(EMBEDDING, PROJECTION, TARGET)
    want = {
        "distance": distance_wise(EMBEDDING, TARGET),
        "angle": angle_wise(EMBEDDING, TARGET),
        "cosine": cosine_wise(EMBEDDING, TARGET, "l1"),
        "feature": feature_wise(PROJECTION, TARGET, "smooth_l1"),
    }
    assert {name: term.item() for name, term in terms.items()} == {n: v.item() for n, v in want.items()}
    by_hand = 0.5 * want["distance"] + 2 * want["angle"] + 3 * want["cosine"] + 0.25 * want["feature"]
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_every_term_is_the_loss_of_its_name() -> None:
    config = LossConfig(
        feature=0, distance_correlation=1, distance_correlation_kind="scale_free", similarity=2, kernel=3,
        kernel_kind="rbf", kernel_bandwidth=0.5, kernel_unbiased=True, contrastive=4,
        contrastive_kind="cluster_aware", contrastive_temperature=0.2, contrastive_masked="excluded",
    )  # fmt: skip
    clusters = torch.arange(12) % 4
    total, terms = WeightedLoss(config)(EMBEDDING, PROJECTION, TARGET, clusters=clusters)
    want = {
        "distance_correlation": distance_correlation(EMBEDDING, TARGET, "scale_free"),
        "similarity": similarity_preserving(EMBEDDING, TARGET),
        "kernel": kernel_alignment(EMBEDDING, TARGET, "rbf", 0.5, unbiased=True),
        "contrastive": contrastive(PROJECTION, TARGET, "cluster_aware", 0.2, clusters, "excluded"),
    }
    assert {name: term.item() for name, term in terms.items()} == {n: v.item() for n, v in want.items()}
    by_hand = sum(weight * value for weight, value in zip((1, 2, 3, 4), want.values(), strict=True))
    assert total.item() == pytest.approx(float(by_hand), rel=1e-6)


def test_a_loss_of_classes_alone_has_nothing_to_do_with_embeddings() -> None:
    with pytest.raises(ConfigError, match="no term of the loss looks at the embedding"):
        WeightedLoss(LossConfig(feature=0, labels=1))(EMBEDDING, None, TARGET)
    with pytest.raises(ConfigError, match="no term of the loss looks at classes"):
        WeightedClassLoss(LossConfig(feature=1))()
    with pytest.raises(ConfigError, match="not given what it compares"):
        WeightedClassLoss(LossConfig(feature=0, tags=1))(EMBEDDING)


def test_a_term_of_weight_zero_is_not_reported() -> None:
    _, terms = WeightedLoss(LossConfig(angle=1, feature=0))(EMBEDDING, None, TARGET)
    assert set(terms) == {"angle"}


def test_relational_terms_look_where_the_recipe_says() -> None:
    config = LossConfig(distance=1, feature=0, relational_on="projection")
    total, _ = WeightedLoss(config)(EMBEDDING, PROJECTION, TARGET)
    assert total.item() == distance_wise(PROJECTION, TARGET).item()
    assert WeightedLoss(config).needs_projection
    assert not WeightedLoss(LossConfig(distance=1, feature=0)).needs_projection


def test_gradient_reaches_embedding_and_projection_but_no_logged_term() -> None:
    embedding, projection = EMBEDDING.clone().requires_grad_(), PROJECTION.clone().requires_grad_()
    total, terms = WeightedLoss(LossConfig(angle=1, feature=1))(embedding, projection, TARGET)
    total.backward()
    assert embedding.grad is not None
    assert projection.grad is not None
    assert embedding.grad.abs().max() > 0
    assert projection.grad.abs().max() > 0
    assert not any(term.requires_grad for term in terms.values())


def test_a_missing_projection_and_a_wrong_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="projection"):
        WeightedLoss(LossConfig())(EMBEDDING, None, TARGET)
    with pytest.raises((ConfigError, TypeError)):
        feature_wise(EMBEDDING, TARGET)


def test_half_precision_student_under_autocast_gives_a_float32_total() -> None:
    config = LossConfig(distance=1, angle=1, cosine=1, feature=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = WeightedLoss(config)(EMBEDDING.bfloat16(), PROJECTION.bfloat16(), TARGET)
    assert total.dtype == torch.float32
    want, _ = WeightedLoss(config)(EMBEDDING.bfloat16().float(), PROJECTION.bfloat16().float(), TARGET)
    assert total.item() == pytest.approx(want.item(), rel=1e-5)
