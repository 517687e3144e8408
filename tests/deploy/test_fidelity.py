"""What is said of a quantised file: neighbours by sorting, a probe by hand, float32 against itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.deploy.calibration import LabelledRows
from pipeline.deploy.fidelity import FOLDS, Judge, embed_rows, overlap, probe_score
from tests.deploy import onnx_nets


def slow_overlap(a: np.ndarray, b: np.ndarray, neighbours: int) -> float:
    def nearest(x: np.ndarray, row: int) -> set[int]:
        unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        order = np.argsort(-(unit @ unit[row]), kind="stable")
        return set([int(o) for o in order if o != row][:neighbours])

    shared = [len(nearest(a, row) & nearest(b, row)) for row in range(len(a))]
    return sum(shared) / (len(a) * neighbours)


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_overlap_is_that_of_sorted_distances(noise: float) -> None:
    rng = np.random.default_rng(0)
    want = rng.normal(size=(40, 7)).astype(np.float32)
    got = (want + noise * rng.normal(size=want.shape)).astype(np.float32)
    assert overlap(got, want, 5) == pytest.approx(slow_overlap(got, want, 5))


def classes(number: int = 96) -> LabelledRows:
    log_mels = onnx_nets.rows(number, seed=4)
    labels = np.where(log_mels.mean(axis=(1, 2, 3)) > 0, "loud", "soft")
    labels[:2] = "rare"
    groups = np.array([f"clip{row // 2}" for row in range(number)])
    return LabelledRows(log_mels, labels, groups)


def test_the_probe_is_a_ridge_classifier_over_folds_of_clips(tmp_path: Path) -> None:
    fp32, rows = onnx_nets.chain(tmp_path / "fp32.onnx"), classes()
    judge = Judge(fp32, rows.log_mels, rows)
    kept = rows.labels != "rare"  # one clip: no fold could hold it out and know it
    x, y, groups = (
        embed_rows(fp32, rows.log_mels)[kept].astype(np.float64),
        rows.labels[kept],
        rows.groups[kept],
    )
    scores = []
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(x, y, groups):
        assert not set(groups[train]) & set(groups[test])
        mean, std = x[train].mean(axis=0), x[train].std(axis=0)
        fitted = RidgeClassifier(1.0).fit((x[train] - mean) / std, y[train])
        scores.append((fitted.predict((x[test] - mean) / std) == y[test]).mean())
    assert judge.probe_score == pytest.approx(float(np.mean(scores)))
    assert 0.6 < judge.probe_score <= 1.0
    same = judge.fidelity(fp32)
    assert same.centred_cosine == pytest.approx(1.0)
    assert same.neighbour_overlap == 1.0
    assert same.probe_score == judge.probe_score


def test_shuffled_classes_score_like_chance() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(200, 5)), rng.permutation(np.repeat(["a", "b"], 100))
    assert abs(probe_score(x, y, np.arange(200)) - 0.5) < 0.12


def test_without_two_classes_there_is_no_probe(tmp_path: Path) -> None:
    fp32, rows = onnx_nets.chain(tmp_path / "fp32.onnx"), classes(16)
    one = LabelledRows(rows.log_mels, np.full(16, "same"), rows.groups)
    for labelled in (None, one):
        judge = Judge(fp32, rows.log_mels, labelled)
        assert judge.probe_score is None
        assert judge.fidelity(fp32).probe_score is None
