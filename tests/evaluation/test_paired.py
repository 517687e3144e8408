"""Paired differences against the bootstrap written out draw by draw."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import EvaluateConfig
from pipeline.evaluation import bootstrap
from pipeline.evaluation.probes import PROBES
from pipeline.evaluation.scoring import Answers, Difference, differences

RESAMPLES, SEED = 40, 5


def task() -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(1)
    groups = np.repeat([f"kit{n}" for n in range(8)], 6)
    labels = np.array(list("aab") * 16)
    folds = np.repeat([0, 0, 1, 1, 2, 2, 3, 3], 6)
    ours = generator.random(48) < 0.8
    theirs = np.where(generator.random(48) < 0.85, ours, ~ours)
    return ours, theirs, labels, groups, folds


def difference(
    ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: np.ndarray,
    *, metric: str, resamples: int, seed: int,
) -> Difference:  # fmt: skip
    """Return that of ``ours`` less ``theirs``, of the first probe."""
    correct = {(key, probe): one for key, one in (("theirs", theirs), ("ours", ours)) for probe in PROBES}
    settings = EvaluateConfig(bootstrap=resamples, seed=seed)
    found = differences(Answers("made", metric, labels, groups, folds, correct), settings)
    assert [(one.model, one.reference, one.probe) for one in found] == [
        ("ours", "theirs", probe) for probe in PROBES
    ]
    return found[0]


def literal(
    both: list[np.ndarray], labels: np.ndarray, groups: np.ndarray, folds: np.ndarray, metric: str
) -> list[float]:
    """Return the difference of each draw: clips repeated as often as their recording was drawn."""
    generator = np.random.default_rng(SEED)
    names = np.unique(groups)
    found = []
    for _ in range(RESAMPLES):
        times = generator.multinomial(len(names), np.full(len(names), 1 / len(names)))
        drawn: list[int] = []
        for name, count in zip(names, times, strict=True):
            drawn += np.flatnonzero(groups == name).tolist() * int(count)
        means = []
        for answers in both:
            per_fold = []
            for fold in np.unique(folds):
                here = [clip for clip in drawn if folds[clip] == fold]
                if not here:
                    continue
                if metric == "accuracy":
                    per_fold.append(sum(bool(answers[clip]) for clip in here) / len(here))
                    continue
                recalls = []
                for label in sorted({labels[clip] for clip in here}):
                    of_class = [clip for clip in here if labels[clip] == label]
                    recalls.append(sum(bool(answers[clip]) for clip in of_class) / len(of_class))
                per_fold.append(sum(recalls) / len(recalls))
            means.append(sum(per_fold) / len(per_fold))
        found.append(means[0] - means[1])
    return found


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_both_models_are_scored_on_the_same_draws(metric: str) -> None:
    ours, theirs, labels, groups, folds = task()
    found = difference(ours, theirs, labels, groups, folds, metric=metric, resamples=RESAMPLES, seed=SEED)
    each = literal([ours, theirs], labels, groups, folds, metric)
    np.testing.assert_allclose([found.low, found.high], np.quantile(each, [0.025, 0.975]), atol=1e-12)


def test_pairing_narrows_the_interval_of_alike_models() -> None:
    ours, _, labels, groups, folds = task()
    theirs = ours.copy()
    theirs[[3, 20]] ^= True
    options = {"metric": "accuracy", "resamples": 400, "seed": 0}
    apart = difference(ours, theirs, labels, groups, folds, **options)  # type: ignore[arg-type]
    single = bootstrap.interval(ours, labels, groups, folds, **options)  # type: ignore[arg-type]
    assert apart.high - apart.low < single[1] - single[0]
    same = difference(ours, ours, labels, groups, folds, **options)  # type: ignore[arg-type]
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
