"""All eight tasks on a folder whose answers are known: from the sound files to scores.json."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
import torch
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import EvaluateConfig, LogMelConfig, Recipe, StudentConfig
from pipeline.errors import AudioError, ConfigError
from pipeline.evaluation import dear_table, embedders, metrics, split_answers, track_vectors
from pipeline.evaluation.scoring import STUDENT, Model, summarise
from pipeline.evaluation.split_probes import SplitProbes
from pipeline.evaluation.split_scoring import SplitScores, heard_tasks, score_split_tasks
from pipeline.evaluation.track_vectors import TrackVectors, cut, embed_tracks
from pipeline.evaluation.window_batch import SAMPLE_RATE_HZ, WindowBatch
from pipeline.probe_config import ProbeGridConfig
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import save_student
from stages import evaluate, evaluation_tasks, locations
from tests.evaluation import fabricated_dear as dear

# To one of them Leisure and Nature sound alike, and all else is silence.
HEARD_BY_MERGED = ("Domestic", "Professional", "Transport")
READERS = {
    "reader": dear.ToneReader(),
    "merged": dear.ToneReader(deaf_to=tuple(name for name in dear.FEATURES if name not in HEARD_BY_MERGED)),
    "constant": dear.Constant(),
}
MODELS = {key: Model(key, STUDENT, key) for key in READERS}
SETTINGS = EvaluateConfig(bootstrap=60, grid={"neighbours": (1, 5), "ridge_alpha": (0.001, 1.0), "folds": 3})
PLANTED = {
    "environment": dear.ENVIRONMENTS, "indoor_outdoor": ("outdoor",), "stationary_transient": ("transient",),
    "speech_present": ("speech",), "speakers_active": ("active",), "drr": ("drr",), "rt60": ("rt60",),
    "snr": ("snr",),
}  # fmt: skip
CLASS_TASKS = ("environment", "indoor_outdoor", "stationary_transient", "speech_present")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dear.write(tmp_path_factory.mktemp("dear"))


@pytest.fixture(scope="module")
def vectors(root: Path, tmp_path_factory: pytest.TempPathFactory) -> TrackVectors:
    read = dear_table.read(root)
    return embed_tracks(read.paths, read.audio_digests, 2, READERS, tmp_path_factory.mktemp("vectors"))


@pytest.fixture(scope="module")
def scores(root: Path, vectors: TrackVectors) -> SplitScores:
    tasks = dear_table.tasks(dear_table.read(root))
    tasks = heard_tasks(tasks, {"track": vectors.heard.any(axis=1), "second": vectors.heard.ravel()})
    matrices = {"track": vectors.tracks, "second": vectors.seconds}
    return score_split_tasks(tasks, MODELS, matrices, SETTINGS, "dear")  # type: ignore[arg-type]


def score(scores: SplitScores, model: str, task: str, probe: str) -> Any:
    (row,) = [r for r in scores.rows if (r.model, r.task, r.probe) == (model, f"dear_{task}", probe)]
    return row


@pytest.mark.parametrize("task", dear_table.TASKS)
def test_who_reads_the_labels_is_right_and_who_hears_nothing_is_not(scores: SplitScores, task: str) -> None:
    reader = score(scores, "reader", task, "linear")
    assert reader.score == pytest.approx(1.0, abs=0.01)
    assert reader.low <= reader.score <= reader.high
    constant = score(scores, "constant", task, "linear")
    if task in CLASS_TASKS:
        assert constant.score == score(scores, "constant", task, "knn").score == 0
    else:
        read = scores.predictions[f"dear_{task}"]
        mean = read["constant.linear"]
        assert mean.nunique() == 1
        want = 1 - ((read["truth"] - mean) ** 2).sum() / ((read["truth"] - read["truth"].mean()) ** 2).sum()
        assert constant.score == pytest.approx(want)
        assert -0.1 < constant.score <= 0


@pytest.mark.parametrize("task", dear_table.TASKS)
def test_the_nearest_in_what_was_planted_has_the_same_label(
    root: Path, vectors: TrackVectors, task: str
) -> None:
    """k-NN weighs all twelve tones alike, so it is given the task's own."""
    (asked,) = [t for t in dear_table.tasks(dear_table.read(root)) if t.name == f"dear_{task}"]
    matrix = (vectors.tracks if asked.unit == "track" else vectors.seconds)["reader"][asked.rows]
    columns = [dear.FEATURES.index(name) for name in PLANTED[task]]
    probes = SplitProbes(
        matrix[:, columns], asked.held_out, asked.groups, ProbeGridConfig(neighbours=(1,), folds=3)
    )
    answer = probes.answer("knn", asked.truth[~asked.held_out], asked.metric)
    assert metrics.score(asked.metric, asked.truth[asked.held_out], answer.prediction) == pytest.approx(1.0)


def test_two_classes_that_sound_alike_give_the_known_confusion(scores: SplitScores) -> None:
    """Thirty test tracks, six a class; both are answered as the more frequent: 15 / sqrt(360), as in test_metrics."""
    found = scores.predictions["dear_environment"]
    want = found["truth"].replace("Nature", "Leisure")
    assert found["merged.linear"].tolist() == want.tolist()
    assert score(scores, "merged", "environment", "linear").score == pytest.approx(15 / np.sqrt(360))


def test_the_mean_of_eight_and_the_paired_differences(scores: SplitScores) -> None:
    for model in MODELS:
        (mean,) = [r for r in scores.rows if (r.model, r.task, r.probe) == (model, "dear", "linear")]
        eight = [score(scores, model, task, "linear").score for task in dear_table.TASKS]
        assert mean.score == pytest.approx(np.mean(eight))
        assert mean.low <= mean.score <= mean.high
    (found,) = [
        d for d in scores.differences
        if (d.task, d.probe, d.model, d.reference) == ("dear_environment", "linear", "merged", "reader")
    ]  # fmt: skip
    assert found.difference == pytest.approx(15 / np.sqrt(360) - 1)
    assert found.decided
    # A reference that is no better than nothing has no share that could be retained.
    assert all(row["retention"] is None for row in summarise(scores.rows))


def test_a_track_is_heard_whole_and_second_by_second(root: Path, vectors: TrackVectors) -> None:
    read = dear_table.read(root)
    for row in (0, len(read.paths) - 1):
        native, _ = soundfile.read(read.paths[row], dtype="float32")
        at_rate = soxr.resample(native, dear.RATE_HZ, SAMPLE_RATE_HZ, quality="HQ")
        at_rate = np.pad(at_rate, (0, 2 * SAMPLE_RATE_HZ))[: 2 * SAMPLE_RATE_HZ]
        for matrix, windows, at in (
            (vectors.tracks, at_rate[None], slice(row, row + 1)),
            (vectors.seconds, at_rate.reshape(2, -1), slice(2 * row, 2 * row + 2)),
        ):
            want = dear.ToneReader().embed(WindowBatch(torch.from_numpy(windows), np.zeros(len(windows))))
            np.testing.assert_allclose(matrix["reader"][at], want, atol=1e-5)


def test_the_last_second_is_followed_by_silence_and_one_that_is_missing_is_not_heard() -> None:
    waveform = np.ones(2 * SAMPLE_RATE_HZ - 10, dtype=np.float32)
    whole, seconds, heard = cut(waveform, 2)
    assert heard.tolist() == [True, True]
    np.testing.assert_array_equal(whole, np.append(waveform, np.zeros(10, dtype=np.float32)))
    np.testing.assert_array_equal(seconds.ravel(), whole)
    assert cut(waveform, 4)[2].tolist() == [True, True, False, False]
    assert cut(waveform[: SAMPLE_RATE_HZ + SAMPLE_RATE_HZ // 2], 2)[2].tolist() == [True, False]


def test_seconds_without_sound_are_in_no_task(tmp_path: Path) -> None:
    scenes = ("d00", "d01", "dn0", "t00", "t01", "tn0")
    rows = [row for row in dear.rows() if row["id"].startswith(scenes)]
    dear.write(tmp_path, rows)
    name = tmp_path / "files" / "d000.wav"
    native, rate_hz = soundfile.read(name, dtype="float32")
    soundfile.write(name, native[:rate_hz], rate_hz)
    (tmp_path / "files" / "d001.wav").write_bytes(b"no sound")
    read = dear_table.read(tmp_path)
    reader = {"reader": dear.ToneReader()}
    found = embed_tracks(read.paths, read.audio_digests, 2, reader, tmp_path / "vectors")
    assert [(clip.row, clip.reason != "") for clip in found.unusable] == [(1, True)]
    tasks = heard_tasks(
        dear_table.tasks(read), {"track": found.heard.any(axis=1), "second": found.heard.ravel()}
    )
    by_name = {task.name: task for task in tasks}
    assert "d000" in by_name["dear_environment"].groups
    assert "d001" not in by_name["dear_environment"].groups
    assert by_name["dear_snr"].left_out["no sound"] == 3
    assert not {1, 2, 3} & set(by_name["dear_snr"].rows.tolist())
    with pytest.raises(AudioError, match="not one of 1 tracks"):
        embed_tracks(read.paths[1:2], read.audio_digests[1:2], 2, reader, tmp_path / "none")


def test_a_model_hears_a_track_once_until_the_track_changes(tmp_path: Path) -> None:
    rows = dear.rows()[:3]
    dear.write(tmp_path, rows)
    (tmp_path / "DEAR_metadata.csv").unlink()
    paths = sorted((tmp_path / "files").iterdir())

    def heard() -> int:
        reader = dear.ToneReader()
        digests = [artifact.file_digest(path) for path in paths]
        embed_tracks(paths, digests, 2, {"reader": reader}, tmp_path / "vectors")
        return reader.windows

    assert (heard(), heard()) == (9, 0)
    # Killed between the last shard and the marker: nothing that was finished is heard again.
    (store,) = (tmp_path / "vectors").glob("tracks-*")
    (store / artifact.MARKER).unlink()
    assert heard() == 0
    # One track changes: it alone is heard anew, the others are another store's.
    soundfile.write(paths[0], np.zeros(2 * dear.RATE_HZ), dear.RATE_HZ)
    assert (heard(), heard()) == (3, 0)


class ShortOnly:
    """A network whose shapes fit one second alone."""

    def digest(self) -> str:
        return "5" * 64

    def embed(self, batch: WindowBatch) -> np.ndarray:
        return (batch.waveforms @ torch.ones(SAMPLE_RATE_HZ, 2)).numpy()


def test_a_model_that_cannot_hear_a_whole_track_is_named(root: Path, tmp_path: Path) -> None:
    read = dear_table.read(root)
    with pytest.raises(ConfigError, match="short cannot hear 2 s at once"):
        embed_tracks(read.paths[:1], read.audio_digests[:1], 2, {"short": ShortOnly()}, tmp_path)


def recipe_of(root: Path, work: Path, **keys: Any) -> Recipe:
    evaluation = {
        "tasks": ["dear"],
        "bootstrap": 20,
        "random_floors": 1,
        "grid": {"folds": 2, "logistic_c": [0.01, 1.0]},
        "episodes": 4,
    }
    return Recipe.model_validate(
        {
            "name": "tiny", "paths": {"artifacts": work},
            "embed": {"teacher": {"name": "tiny"}, "frontend": {"mels": 16}},
            "student": {"width": 0.25}, "export": {"int8": False},
            "evaluate": {**evaluation, "audio_roots": {"dear": root}, **keys},
        }
    )  # fmt: skip


def test_evaluate_scores_dear_without_a_manifest(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(root, tmp_path, teachers=["again"], declared={"again": {"name": "tiny"}})
    monkeypatch.setattr(locations, "run_folder", lambda run: tmp_path / "run" / run.label)
    (run,) = recipes.expand(recipe)
    student = StudentConfig(width=0.25)
    torch.manual_seed(0)
    network = NormalisedStudent(build_student(student, 16), -4.0, 3.0).eval()
    save_student(locations.run_folder(run), network, student, LogMelConfig(mels=16))
    artifact.finish(locations.run_folder(run), kind="run", config={}, inputs={})

    text = io.StringIO()
    folder = evaluate.run(recipe, console=Console(file=text, width=250))
    scores = json.loads((folder / "scores.json").read_text())
    roles = [model["role"] for model in scores["models"]]
    assert sorted(roles) == ["log_mel", "log_mel", "random", "reference", "student", "teacher"]
    assert [task["name"] for task in scores["tasks"]] == [
        *(f"dear_{name}" for name in dear_table.TASKS),
        "dear",
    ]
    assert len(scores["rows"]) == 9 * 2 * 6
    assert {row["at_edge"] for row in scores["rows"] if row["task"] == "dear"} == {False}
    assert {row["task"] for row in scores["structure"]} == {"dear"}
    assert len(scores["differences"]) == 9 * 2 * 15
    described = {task["name"]: task for task in scores["tasks"]}
    assert described["dear_environment"]["classes"] == {
        **dict.fromkeys(dear.ENVIRONMENTS, 15),
        "Leisure": 17,
        "Nature": 13,
    }
    assert described["dear_snr"]["metric"] == "r2"
    predictions = pd.read_parquet(folder / "predictions" / "dear_snr.parquet")
    assert len(predictions) == described["dear_snr"]["test_rows"] == 60
    assert "teacher-tiny.linear" in predictions
    printed = text.getvalue()
    assert "dear, linear: mcc or r2" in printed
    assert "reference again" in printed
    assert "stationary transient" in printed
    of_classes = {f"dear_{name}" for name in CLASS_TASKS}
    assert {row["task"] for row in scores["calibration"]} == of_classes
    assert len(scores["calibration"]) == 4 * 2 * 5
    row = next(
        row for row in scores["calibration"]
        if (row["task"], row["model"], row["probe"]) == ("dear_environment", "teacher-tiny", "linear")
    )  # fmt: skip
    assert sum(row["clips"]) == described["dear_environment"]["test_rows"]
    environment = pd.read_parquet(folder / "predictions" / "dear_environment.parquet")
    right = (environment["truth"] == environment["teacher-tiny.linear"]).mean()
    assert np.average(row["accuracy"], weights=row["clips"]) == pytest.approx(right)
    assert {row["task"] for row in scores["few_shot"]} <= of_classes
    taught = [row for row in scores["few_shot"] if row["task"] == "dear_environment"]
    assert len(taught) == 6 * 2
    assert {(row["episodes"], row["shots"], row["classes"]) for row in taught} == {(4, 5, 5)}
    evaluate.run(recipe, console=Console(file=text, width=250))
    assert "evaluate: reused" in text.getvalue()

    def refuse(*_: object) -> None:
        raise AssertionError("heard or fitted again")

    monkeypatch.setattr(track_vectors, "_heard", refuse)
    monkeypatch.setattr(split_answers, "SplitProbes", refuse)
    shutil.rmtree(folder)
    evaluate.run(recipe, console=Console(file=text, width=250))
    again = json.loads((folder / "scores.json").read_text())
    for key in ("rows", "calibration", "few_shot", "differences", "geometry"):
        assert again[key] == scores[key]


def test_a_suite_wants_its_folder_and_is_evaluates_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite 'dear' needs its audio"):
        evaluate.run(recipe_of(tmp_path, tmp_path, audio_roots={}), console=Console(file=io.StringIO()))
    text = io.StringIO()
    assert evaluation_tasks.choose(recipe_of(tmp_path, tmp_path), Console(file=text), stage="compare") == []
    assert "scored by ossicle evaluate alone" in text.getvalue()


def test_a_teacher_hears_its_own_rate() -> None:
    class Sixteen:
        sample_rate_hz = 16_000

        def embed(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"embedding": waveforms}

    waveforms = torch.from_numpy(dear.sound(dear.rows()[0])[None, :SAMPLE_RATE_HZ])
    heard = embedders.TeacherEmbedder(Sixteen()).embed(WindowBatch(waveforms, np.zeros(1)))  # type: ignore[arg-type]
    want = soxr.resample(waveforms[0].numpy(), SAMPLE_RATE_HZ, 16_000, quality="HQ")
    np.testing.assert_allclose(heard[0], want, atol=1e-6)
