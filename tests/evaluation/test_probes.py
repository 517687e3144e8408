"""Probes, metrics and intervals against slow literal formulas and known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from threadpoolctl import threadpool_info

from pipeline.errors import OssicleError
from pipeline.evaluation import bootstrap, probes
from pipeline.evaluation.probes import ProbeSettings, predict, score


def clusters(spread: float, seed: int = 0, per_class: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (embedding, labels, folds): three classes in 6-d, three folds."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((3, 6)) * 2
    labels = np.repeat(["a", "b", "c"], per_class)
    embedding = np.repeat(centres, per_class, axis=0) + spread * generator.standard_normal((3 * per_class, 6))
    folds = np.tile(np.arange(3), per_class)
    return embedding.astype(np.float32), labels, folds


def literal_knn(embedding: np.ndarray, labels: np.ndarray, folds: np.ndarray, k: int) -> np.ndarray:
    """k-NN written out: cosine distance, majority, ties to the first class."""
    unit = embedding.astype(np.float64) / np.linalg.norm(embedding.astype(np.float64), axis=1, keepdims=True)
    predicted = []
    for i in range(len(labels)):
        train = [j for j in range(len(labels)) if folds[j] != folds[i]]
        nearest = sorted(train, key=lambda j: (1 - unit[i] @ unit[j], j))[:k]
        votes = {label: sum(labels[j] == label for j in nearest) for label in sorted(set(labels))}
        predicted.append(max(sorted(votes), key=votes.__getitem__))
    return np.array(predicted)


@pytest.mark.parametrize("spread", [0.5, 2.0, 4.0])
def test_knn_equals_the_literal_vote(spread: float) -> None:
    embedding, labels, folds = clusters(spread)
    got = predict("knn", embedding, labels, folds, ProbeSettings())
    assert (got == literal_knn(embedding, labels, folds, 5)).all()


def test_knn_is_blind_to_length_and_linear_to_scale_and_shift() -> None:
    embedding, labels, folds = clusters(2.0)
    factors = np.random.default_rng(1).uniform(0.1, 10, (len(labels), 1))
    for probe, changed in (("knn", embedding * factors), ("linear", embedding * 7.0 + 3.0)):
        settings_ = ProbeSettings()
        want = predict(probe, embedding, labels, folds, settings_)
        assert (predict(probe, changed, labels, folds, settings_) == want).all()


def test_linear_probe_minimises_its_objective() -> None:
    """Softmax regression on standardised features, C = 0.1, minimised here by BFGS from its definition."""
    embedding, labels, folds = clusters(2.5)
    train, test = folds != 0, folds == 0
    x = embedding[train].astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0)
    x = (x - mean) / std
    y = np.searchsorted(["a", "b", "c"], labels[train])

    def objective(flat: np.ndarray) -> float:
        weights, bias = flat[:18].reshape(6, 3), flat[18:]
        logits = x @ weights + bias
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
        return float(0.1 * losses.sum() + 0.5 * np.square(weights).sum())

    best = optimize.minimize(objective, np.zeros(21), method="BFGS").x
    logits = (embedding[test] - mean) / std @ best[:18].reshape(6, 3) + best[18:]
    want = np.array(["a", "b", "c"])[logits.argmax(axis=1)]
    assert (predict("linear", embedding, labels, folds, ProbeSettings())[test] == want).all()


def test_shuffled_labels_score_chance() -> None:
    embedding, labels, folds = clusters(0.1, per_class=60)
    shuffled = np.random.default_rng(0).permutation(labels)
    for probe in probes.PROBES:
        good = predict(probe, embedding, labels, folds, ProbeSettings()) == labels
        chance = predict(probe, embedding, shuffled, folds, ProbeSettings()) == shuffled
        assert good.mean() > 0.99
        assert abs(chance.mean() - 1 / 3) < 0.12


def test_blas_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = probes.probe_model

    def spying(*args: object) -> object:
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(probes, "probe_model", spying)
    embedding, labels, folds = clusters(1.0)
    predict("linear", embedding, labels, folds, ProbeSettings())
    assert seen
    assert set(seen) == {1}


def test_bad_embeddings_are_refused() -> None:
    embedding, labels, folds = clusters(1.0)
    embedding[4, 2] = np.nan
    with pytest.raises(OssicleError, match="NaN"):
        predict("knn", embedding, labels, folds, ProbeSettings())
    with pytest.raises(OssicleError, match="fewer training clips"):
        predict("knn", np.ones((4, 2)), np.array(list("aabb")), np.array([0, 1, 0, 1]), ProbeSettings())


def test_metrics() -> None:
    labels = np.array(list("aaaabb"))
    folds = np.array([0, 0, 0, 1, 1, 1])
    correct = np.array([True, True, False, True, False, True])
    assert score(correct, labels, folds, "accuracy") == pytest.approx([2 / 3, 2 / 3])
    assert score(correct, labels, folds, "balanced_accuracy") == pytest.approx([2 / 3, (1 + 0.5) / 2])


def literal_interval(
    correct: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    labels: np.ndarray,
    metric: str,
    resamples: int,
) -> tuple[float, float]:
    """Draw groups one by one, collect their clips, and average the folds that have any."""
    generator = np.random.default_rng(99)
    names = sorted(set(groups))
    means = []
    for _ in range(resamples):
        drawn = [names[i] for i in generator.integers(0, len(names), len(names))]
        rows = np.concatenate([np.flatnonzero(groups == name) for name in drawn])
        means.append(np.mean(score(correct[rows], labels[rows], folds[rows], metric)))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_interval_equals_drawing_recordings_one_by_one(metric: str) -> None:
    generator = np.random.default_rng(2)
    groups = np.repeat([f"g{i:02d}" for i in range(30)], 4)
    folds = np.repeat(np.arange(30) % 3, 4)
    labels = generator.choice(["a", "b"], 120)
    correct = np.repeat(generator.random(30) < 0.7, 4) ^ (generator.random(120) < 0.1)
    got = bootstrap.interval(correct, labels, groups, folds, metric=metric, resamples=4_000, seed=0)
    want = literal_interval(correct, groups, folds, labels, metric, 2_000)
    assert got == pytest.approx(want, abs=0.015)


def test_interval_is_wider_when_clips_share_recordings() -> None:
    generator = np.random.default_rng(3)
    correct = np.repeat(generator.random(25) < 0.6, 8)
    labels, folds = np.repeat("a", 200), np.zeros(200, dtype=int)
    alone = np.arange(200).astype(str)
    together = np.repeat(np.arange(25).astype(str), 8)
    widths = []
    for groups in (alone, together):
        low, high = bootstrap.interval(
            correct, labels, groups, folds, metric="accuracy", resamples=2_000, seed=0
        )
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["accuracy", "balanced_accuracy"]))
def test_interval_is_seeded_and_ordered(seed: int, metric: str) -> None:
    generator = np.random.default_rng(seed)
    correct = generator.random(40) < 0.5
    labels, groups = generator.choice(list("abc"), 40), generator.choice(list("pqrstu"), 40)
    folds = generator.integers(0, 3, 40)
    first = bootstrap.interval(correct, labels, groups, folds, metric=metric, resamples=50, seed=seed)
    again = bootstrap.interval(correct, labels, groups, folds, metric=metric, resamples=50, seed=seed)
    assert first == again
    assert 0 <= first[0] <= first[1] <= 1


def test_no_resamples_no_interval() -> None:
    args = (np.array([True]), np.array(["a"]), np.array(["g"]), np.array([0]))
    assert all(np.isnan(bootstrap.interval(*args, metric="accuracy", resamples=0, seed=0)))
