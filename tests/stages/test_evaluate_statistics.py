"""What ``scores.json`` says beside the scores, each from the answers and embeddings by another way."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import accuracy_score, brier_score_loss, recall_score
from sklearn.neighbors import NearestCentroid

from pipeline.config import EvaluateConfig
from pipeline.evaluation import bootstrap
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.probes import PROBES
from pipeline.evaluation.scoring import Answers, Model, Score, answer_task, score_answers
from pipeline.evaluation.task import AudioSource, FoldPlan, Task
from stages.evaluate_statistics import Statistics

CLIPS = 80
SETTINGS = EvaluateConfig(bootstrap=60, overlap_at=(1, 5, 500), shots=2, episodes=20, calibration_bins=4)
MODELS = {
    key: Model(key, role, key)
    for key, role in {
        "teacher-a": "teacher", "teacher-b": "reference", "small": "student", "other": "student", "random": "random",
        "mel": "log_mel",
    }.items()
}  # fmt: skip
Made = tuple[Statistics, Answers, dict[str, np.ndarray], list[Score], str]


@pytest.fixture(scope="module")
def made() -> Made:
    """Six models on two classes in twenty recordings and two conditions, one clip unheard."""
    generator = np.random.default_rng(11)
    classes = np.arange(CLIPS) % 2
    frame = pd.DataFrame(
        {
            "clip_id": [f"c{n:02d}" for n in range(CLIPS)], "path": "", "label": np.array(["off", "on"])[classes],
            "group": [f"g{n // 4:02d}" for n in range(CLIPS)], "fold": np.arange(CLIPS) // 4 % 4,
            "condition": np.where(np.arange(CLIPS) // 4 % 4 == 3, "box", "phone"),
        }
    )  # fmt: skip
    task = Task(
        name="made", title="Made", licence="none", audio=AudioSource(source="manifest", group_column="group"),
        folds=FoldPlan(kind="grouped_k_fold"),
    )  # fmt: skip
    clips = TaskClips(task, frame, {})
    strength = {"teacher-a": 2.0, "teacher-b": 1.4, "small": 1.2, "other": 0.7, "random": 0.0, "mel": 0.3}
    embeddings = {}
    for key, apart in strength.items():
        x = generator.standard_normal((CLIPS, 6)).astype(np.float32)
        x[:, 0] += apart * (2 * classes - 1)
        x[7] = np.nan
        embeddings[key] = x
    answers = answer_task(clips, embeddings, SETTINGS)
    rows = score_answers(answers, MODELS, SETTINGS)
    found, console = Statistics(), Console(file=io.StringIO())
    found.add_answers(clips, MODELS, embeddings, answers, SETTINGS)
    heard = {key: x[answers.heard] for key, x in embeddings.items()}
    found.add_few_shot("made", answers.labels, answers.groups, MODELS, heard, SETTINGS, console)
    found.add_geometry("made", MODELS, heard, SETTINGS)
    found.add_retention(MODELS, rows, {"made": answers}, SETTINGS)
    others = [
        {"task": "suite", "probe": "knn", "model": "small", "reference": "teacher-a", "p_value": 0.04},
        {"task": "suite", "probe": "knn", "model": "random", "reference": "teacher-a", "p_value": 0.001},
    ]
    found.correct_differences(MODELS, others)
    return found, answers, embeddings, rows, console.file.getvalue()  # type: ignore[attr-defined]


def one(rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    (found,) = [row for row in rows if all(row[key] == value for key, value in keys.items())]
    return found


def test_tables_of_the_answers_leave_random_floors_out(made: Made) -> None:
    found, answers, *_ = made
    for table in (found.classes, found.confusions, found.calibration):
        assert {(row["model"], row["probe"]) for row in table} == {
            (key, probe) for key in MODELS if key != "random" for probe in PROBES
        }
    for row in found.confusions:
        outcome = answers.outcomes[row["model"], row["probe"]]
        assert np.trace(row["counts"]) / np.sum(row["counts"]) == pytest.approx(
            accuracy_score(answers.labels, outcome.predicted)
        )
        recalls = [
            each["recall"] for each in one(found.classes, model=row["model"], probe=row["probe"])["rows"]
        ]
        np.testing.assert_allclose(recalls, recall_score(answers.labels, outcome.predicted, average=None))
    row = one(found.calibration, model="small", probe="linear")
    probability = answers.outcomes["small", "linear"].probabilities[:, 1]
    assert row["brier"] == pytest.approx(2 * brier_score_loss(answers.labels == "on", probability), abs=1e-6)
    assert sum(row["clips"]) == CLIPS - 1


def test_conditions_have_their_own_scores(made: Made) -> None:
    found, answers, *_ = made
    rows = [row for row in found.conditions if (row["model"], row["probe"]) == ("small", "knn")]
    assert [(row["condition"], row["rows"], row["seen"]) for row in rows] == [
        ("box", 20, False), ("phone", 59, True),
    ]  # fmt: skip
    correct = answers.correct["small", "knn"]
    assert rows[0]["score"] == pytest.approx(correct[answers.folds == 3].mean())


def test_few_shot_is_that_of_nearest_centroids(made: Made) -> None:
    found, answers, embeddings, *_ = made
    assert {(row["model"], row["classifier"]) for row in found.few_shot} == {
        (key, name) for key in MODELS for name in ("prototypes", "neighbours")
    }
    row = one(found.few_shot, model="teacher-a", classifier="prototypes")
    assert (row["shots"], row["episodes"], row["classes"]) == (2, 20, 2)
    assert row["low"] <= row["accuracy"] <= row["high"]
    # Another draw of episodes by hand: 2 clips a class, the clips asked for from other recordings.
    generator, accuracies = np.random.default_rng(0), []
    x = embeddings["teacher-a"][answers.heard]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    for _ in range(200):
        order = generator.permutation(len(x))
        taught = np.concatenate([order[answers.labels[order] == label][:2] for label in ("off", "on")])
        asked = ~np.isin(answers.groups, answers.groups[taught])
        model = NearestCentroid().fit(x[taught], answers.labels[taught])
        accuracies.append(accuracy_score(answers.labels[asked], model.predict(x[asked])))
    assert row["accuracy"] == pytest.approx(np.mean(accuracies), abs=0.08)


def test_geometry_is_against_every_other_teacher(made: Made) -> None:
    found = made[0]
    against = {row["model"]: [each["teacher"] for each in row["against"]] for row in found.geometry}
    assert against["teacher-a"] == ["teacher-b"]
    assert against["teacher-b"] == ["teacher-a"]
    assert against["small"] == against["random"] == ["teacher-a", "teacher-b"]
    for row in found.geometry:
        for each in row["against"]:
            assert set(each["neighbour_overlap"]) == {"1", "5"}
            assert -1 <= each["distance_correlation"] <= 1
    first, second = (one(found.geometry, model=f"teacher-{name}")["against"][0] for name in "ab")
    assert first["debiased_cka"] == pytest.approx(second["debiased_cka"])


def test_retention_against_each_teacher_with_a_paired_interval(made: Made) -> None:
    found, answers, _, rows, _ = made
    values = {(row.model, row.probe): row.score for row in rows}
    for teacher in ("teacher-a", "teacher-b"):
        row = one(found.retention, model="small", probe="knn", teacher=teacher)
        assert row["retention"] == pytest.approx(values["small", "knn"] / values[teacher, "knn"])
        assert row["low"] <= row["retention"] <= row["high"]
    draws = [
        bootstrap.draws(
            answers.correct[key, "knn"], answers.labels, answers.groups, answers.folds,
            metric="accuracy", resamples=60, seed=0,
        )
        for key in ("small", "teacher-a")
    ]  # fmt: skip
    row = one(found.retention, model="small", probe="knn", teacher="teacher-a")
    assert row["low"] == pytest.approx(np.quantile(draws[0] / draws[1], 0.025))


def test_no_retention_of_an_error(made: Made) -> None:
    again = Statistics()
    again.add_retention(MODELS, made[3], {}, SETTINGS, {"made"})
    assert again.retention == []


def test_differences_between_what_learnt_are_corrected(made: Made) -> None:
    found = made[0]
    family = [row for row in found.differences if (row["task"], row["probe"]) == ("made", "linear")]
    keys = ("teacher-a", "teacher-b", "small", "other")
    assert {(row["model"], row["reference"]) for row in family} == {
        (keys[j], keys[i]) for i in range(4) for j in range(i + 1, 4)
    }
    ordered = sorted(family, key=lambda row: row["p_value"])
    worst = 0.0
    for place, row in enumerate(ordered):
        worst = max(worst, min(1.0, row["p_value"] * (6 - place)))
        assert row["p_holm"] == pytest.approx(worst)
    # 600 draws, not 60: a p-value can be small enough to survive six comparisons.
    assert one(family, model="other", reference="teacher-a")["p_value"] == pytest.approx(2 / 601)
    assert one(found.differences, task="suite", model="small")["p_holm"] == 0.04
    assert one(found.differences, task="suite", model="random")["p_holm"] is None


def test_too_few_recordings_for_episodes_are_said(made: Made) -> None:
    _, answers, embeddings, *_ = made
    text, again = io.StringIO(), Statistics()
    again.add_few_shot(
        "made", answers.labels, np.full(len(answers.labels), "one"), MODELS, embeddings, SETTINGS,
        Console(file=text, width=200),
    )  # fmt: skip
    assert again.few_shot == []
    assert "made: no few-shot episodes: too few clips to teach 2 a class" in text.getvalue()
