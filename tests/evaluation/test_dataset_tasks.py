"""Tasks on published datasets: official folds and splits, tags, values, devices; scores by hand and by scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from pipeline.errors import ConfigError, ManifestError
from pipeline.evaluation import metrics, split_breakdown
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.dataset_clips import TEST, TRAIN, VALIDATION, from_dataset, split_tasks
from pipeline.evaluation.split_probes import SplitProbes
from pipeline.evaluation.split_task import SplitTask
from pipeline.evaluation.tag_probes import one_vs_rest, tag_vote
from pipeline.evaluation.task import Task, read_task
from pipeline.probe_config import ProbeGridConfig
from pipeline.recipe import DATA_MANIFESTS
from tests.evaluation.dataset_folders import FOLDERS, openmic2018, write

TASKS = {
    path.stem: read_task(path.stem, path.parent) for path in sorted((DATA_MANIFESTS / "tasks").glob("*.toml"))
}
ON_DATASETS = [name for name, task in TASKS.items() if task.audio.source == "dataset"]
GRID = ProbeGridConfig(logistic_c=(0.01, 1.0), ridge_alpha=(1.0, 100.0), neighbours=(1, 3), folds=2)


def clips_of(name: str, root: Path) -> TaskClips:
    if TASKS[name].audio.dataset == "openmic2018":
        openmic2018(root, TASKS[name].audio.tag_columns)
    else:
        FOLDERS[TASKS[name].audio.dataset](root)
    return from_dataset(TASKS[name], root)


def task_of(name: str, **changes: object) -> Task:
    content = TASKS[name].model_dump()
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    return Task.model_validate(content)


@pytest.mark.parametrize("name", ON_DATASETS)
def test_every_task_of_a_published_dataset_has_answers_to_score(name: str, tmp_path: Path) -> None:
    clips = clips_of(name, tmp_path)
    task, frame = clips.task, clips.frame
    assert clips.labelled and frame["clip_id"].is_unique and not clips.left_out
    assert all(path.startswith(str(tmp_path)) for path in frame["path"])
    if task.folds.kind != "split":
        assert frame.groupby("group")["fold"].nunique().max() == 1
        return
    for one in split_tasks(clips):
        features = np.random.default_rng(3).normal(size=(len(one.rows), 4))
        probes = SplitProbes(features, one.held_out, one.groups, GRID, validation=one.validation)
        for probe in ("knn", "linear"):
            answer = probes.answer(probe, one.truth[~one.held_out], one.metric)
            assert np.isfinite(metrics.score(one.metric, one.truth[one.held_out], answer.prediction))


def test_official_folds_stay_as_they_are(tmp_path: Path) -> None:
    esc50 = clips_of("esc50", tmp_path / "esc50").frame
    assert [int(path.split("/")[1][0]) for path in esc50["clip_id"]] == list(esc50["fold"])
    urban = clips_of("urbansound8k", tmp_path / "us8k").frame
    assert [path.split("/")[1] for path in urban["clip_id"]] == [f"fold{fold}" for fold in urban["fold"]]
    speakers = clips_of("tess_speakers", tmp_path / "tess").frame
    assert {(path[0], fold) for path, fold in zip(speakers["clip_id"], speakers["fold"], strict=True)} == {
        ("O", 0), ("Y", 1),
    }  # fmt: skip
    words = from_dataset(TASKS["tess"], tmp_path / "tess").frame
    assert set(words["group"]) == {"back", "dog", "bite", "cab", "dab", "fail"}


def test_official_splits_stay_as_they_are(tmp_path: Path) -> None:
    fsd50k = clips_of("fsd50k", tmp_path / "fsd50k").frame
    expected = {f"FSD50K.dev_audio/{n}.wav": VALIDATION if n % 4 == 3 else TRAIN for n in range(100, 112)} | {
        f"FSD50K.eval_audio/{n}.wav": TEST for n in range(200, 206)
    }
    assert dict(zip(fsd50k["clip_id"], fsd50k["fold"], strict=True)) == expected
    magna = clips_of("magnatagatune", tmp_path / "magna").frame
    for path, fold in zip(magna["clip_id"], magna["fold"], strict=True):
        assert fold == (VALIDATION if path[0] == "c" else TEST if path[0] in "def" else TRAIN)
    genres = clips_of("gtzan", tmp_path / "gtzan").frame
    assert len(genres) == 18 and genres["fold"].value_counts().to_dict() == {TRAIN: 6, VALIDATION: 6, TEST: 6}
    assert len(from_dataset(TASKS["gtzan_ten_folds"], tmp_path / "gtzan").frame) == 24
    assert len(clips_of("fma_small", tmp_path / "fma").frame) == 20


def test_unlabelled_instruments_count_neither_way(tmp_path: Path) -> None:
    clips = clips_of("openmic_nine", tmp_path)
    task = split_tasks(clips)[0]
    assert task.tags == TASKS["openmic_nine"].audio.tag_columns
    for row, key in enumerate(clips.frame["clip_id"]):
        n = int(Path(key).stem.split("_")[1])
        for place in range(9):
            known = (n + place) % 4 != 3
            expected = float(n % 2 == place % 2) if known else np.nan
            np.testing.assert_equal(task.truth[row, place], expected)


def test_tags_without_a_column_of_their_own_are_no(tmp_path: Path) -> None:
    fsd50k = split_tasks(clips_of("fsd50k", tmp_path / "fsd50k"))[0]
    assert fsd50k.tags == ("Bark", "Guitar", "Music")
    assert set(map(tuple, fsd50k.truth.tolist())) == {(1, 0, 0), (0, 1, 0), (0, 1, 1)}
    assert [task.metric for task in split_tasks(clips_of("magnatagatune", tmp_path / "m"))] == [
        "mean_average_precision", "macro_auc",
    ]  # fmt: skip


def test_instruments_shared_by_validation_and_test_do_not_leak_into_training(tmp_path: Path) -> None:
    task = split_tasks(clips_of("nsynth", tmp_path))[0]
    assert task.validation is not None and "in both" not in task.about
    train = ~task.held_out & ~task.validation
    test = {name.removesuffix(" (test)") for name in task.groups[task.held_out]}
    assert not set(task.groups[train]) & test
    assert set(task.groups[task.validation]) == test


def test_a_group_in_train_and_test_is_said(tmp_path: Path) -> None:
    FOLDERS["tau_scenes"](tmp_path)
    table = (tmp_path / "meta.csv").read_text().replace("\tlyon-31\t", "\tlyon-0\t")
    write(tmp_path / "meta.csv", table.rstrip("\n"))
    task = split_tasks(from_dataset(TASKS["tau_scenes"], tmp_path))[0]
    assert "1 groups are in both" in task.about


def test_pitch_is_a_value(tmp_path: Path) -> None:
    tasks = split_tasks(clips_of("nsynth_pitch", tmp_path))
    assert [task.metric for task in tasks] == ["r2", "mae", "ccc"]
    assert set(tasks[0].truth) == {40.0, 60.0, 45.0, 50.0}
    with pytest.raises(ManifestError, match="a value is no number"):
        split_tasks(
            from_dataset(task_of("nsynth_pitch", audio={"label_column": "instrument_family_str"}), tmp_path)
        )


def tags_and_features() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(8)
    features = generator.normal(size=(60, 5))
    truth = (features[:, :3] + generator.normal(scale=0.7, size=(60, 3)) > 0).astype(float)
    truth[generator.random((60, 3)) < 0.3] = np.nan
    truth[:, 2] = np.where(np.isnan(truth[:, 2]), np.nan, 0.0)
    return features, truth


def test_one_vs_rest_equals_scikit_learns_on_the_labelled_rows() -> None:
    features, truth = tags_and_features()
    answers = one_vs_rest(features[:40], truth[:40], features[40:], [0.05, 2.0])
    for tag in (0, 1):
        known = ~np.isnan(truth[:40, tag])
        for place, strength in enumerate((0.05, 2.0)):
            model = LogisticRegression(C=strength, max_iter=2_000, tol=1e-8)
            expected = model.fit(features[:40][known], truth[:40, tag][known]).predict_proba(features[40:])[
                :, 1
            ]
            np.testing.assert_allclose(answers[place, :, tag], expected, atol=2e-3)
    assert (answers[:, :, 2] == 0).all()


def test_tags_are_scored_as_scikit_learn_scores_the_labelled_rows() -> None:
    features, truth = tags_and_features()
    scores = features[:, :3]
    known = ~np.isnan(truth)
    both = [tag for tag in range(3) if len(np.unique(truth[known[:, tag], tag])) == 2]
    for name, of in (("mean_average_precision", average_precision_score), ("macro_auc", roc_auc_score)):
        expected = np.mean([of(truth[known[:, t], t], scores[known[:, t], t]) for t in both])
        assert metrics.score(name, truth, scores) == pytest.approx(expected, abs=1e-12)


def test_neighbours_vote_with_the_labels_they_have() -> None:
    truth = np.array([[1.0, np.nan], [0.0, np.nan], [1.0, 1.0], [np.nan, 0.0], [np.nan, 0.0]])
    answers = tag_vote(truth, np.array([[0, 1, 3], [3, 4, 0]]), [2, 3])
    np.testing.assert_allclose(answers[0], [[0.5, 1 / 3], [2 / 3, 0.0]])
    np.testing.assert_allclose(answers[1], [[0.5, 0.0], [1.0, 0.0]])


def test_a_validation_split_chooses_and_is_not_learnt_from() -> None:
    generator = np.random.default_rng(2)
    features = generator.normal(size=(90, 4))
    truth = np.where(features[:, 0] + generator.normal(scale=0.5, size=90) > 0, "a", "b")
    held_out, validation = np.arange(90) >= 70, (np.arange(90) >= 40) & (np.arange(90) < 70)
    probes = SplitProbes(features, held_out, np.arange(90), GRID, validation=validation)
    mean, deviation = features[:40].mean(axis=0), features[:40].std(axis=0)
    scaled = (features - mean) / deviation
    found = {}
    for strength in GRID.logistic_c:
        model = LogisticRegression(C=strength, max_iter=2_000).fit(scaled[:40], truth[:40])
        found[strength] = (model.predict(scaled[40:70]) == truth[40:70]).mean(), model.predict(scaled[70:])
    answer = probes.answer("linear", truth[:70], "accuracy")
    best = max(found, key=lambda strength: (found[strength][0], -strength))
    assert answer.strength == best and answer.development_score == pytest.approx(found[best][0])
    assert (answer.prediction == found[best][1]).all()


def test_devices_are_scored_apart_and_unseen_ones_together(tmp_path: Path) -> None:
    task = split_tasks(clips_of("tau_scenes", tmp_path))[0]
    truth, conditions = task.truth[task.held_out], task.conditions[task.held_out]  # type: ignore[index]
    prediction = truth.copy()
    prediction[conditions == "s4"] = "bus"
    prediction[np.flatnonzero(conditions == "a")[0]] = {"airport": "bus", "bus": "airport"}[
        truth[np.flatnonzero(conditions == "a")[0]]
    ]
    rows = {
        row["condition"]: row for row in split_breakdown.by_condition(task, prediction, resamples=200, seed=0)
    }
    share = {name: (prediction == truth)[conditions == name].mean() for name in ("a", "b", "s4", "s5")}
    assert {name: rows[name]["score"] for name in share} == pytest.approx(share)
    assert [rows[name]["seen"] for name in share] == [True, True, False, False]
    assert rows["mean of unseen"]["score"] == pytest.approx((share["s4"] + share["s5"]) / 2)
    assert rows["mean of seen"]["score"] == pytest.approx((share["a"] + share["b"]) / 2)
    assert rows["s4"]["low"] < rows["s4"]["score"] < rows["s4"]["high"] and rows["b"]["low"] == 1.0
    counts = split_breakdown.confusion(task, prediction)
    assert counts["counts"] == confusion_matrix(truth, prediction).tolist() and counts["classes"] == [
        "airport",
        "bus",
    ]


def test_where_with_splits_keeps_every_column_in_step(tmp_path: Path) -> None:
    task = split_tasks(clips_of("nsynth", tmp_path))[0]
    kept = np.arange(len(task.rows)) % 5 != 0
    fewer: SplitTask = task.where(kept, "no sound")
    assert task.validation is not None and fewer.validation is not None
    assert (fewer.validation == task.validation[kept]).all() and fewer.left_out == {
        "no sound": int((~kept).sum())
    }


def test_bad_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folds are scored by"):
        task_of("esc50", metric="mcc")
    with pytest.raises(ValueError, match="another kind"):
        task_of("nsynth", also=("mae",))
    FOLDERS["esc50"](tmp_path)
    with pytest.raises(ConfigError, match="has no column 'categry'"):
        from_dataset(task_of("esc50", audio={"label_column": "categry"}), tmp_path)
    FOLDERS["tau_scenes"](tmp_path / "tau")
    with pytest.raises(ManifestError, match="no clip is in the split 'evalute'"):
        from_dataset(task_of("tau_scenes", folds={"test": "evalute"}), tmp_path / "tau")
    with pytest.raises(ConfigError, match="no published dataset"):
        from_dataset(task_of("esc50", audio={"dataset": "esc51"}), tmp_path)
    with pytest.raises(ManifestError):
        from_dataset(TASKS["fsd50k"], tmp_path)
