"""Clip vectors in a shared store and probes' answers by content: the same as fresh ones, and made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import artifact
from pipeline.config import LogMelConfig
from pipeline.evaluation import clip_vectors, embedders, probe_answers, probes
from pipeline.evaluation import clips as task_clips
from pipeline.evaluation.clip_store import ClipStore
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.probes import ProbeSettings
from pipeline.evaluation.window_batch import UnusableClip, WindowBatch, Windowing
from pipeline.store.reader import StoreReader
from tests.evaluation import sounds

FRONTEND = LogMelConfig(mels=16)
WINDOWING = Windowing(0.5, 3)


class Counting(embedders.LogMelEmbedder):
    """A floor that counts how often it is asked."""

    calls = 0

    def embed(self, batch: WindowBatch) -> np.ndarray:
        self.calls += 1
        return super().embed(batch)


@pytest.fixture
def clips(tmp_path: Path) -> TaskClips:
    """Three classes of four clips, the fourth of which cannot be decoded."""
    written = sounds.write_folder(tmp_path / "audio", per_class=4)
    table = tmp_path / "audio" / "mine.csv"
    table.write_text("path,label\n" + "\n".join(f"{path},{label}" for path, label in written))
    task = task_clips.table_task(table, "label", None)
    found = task_clips.from_table(
        task.model_copy(update={"folds": task.folds.model_copy(update={"count": 2})}), table
    )
    Path(found.frame["path"].iloc[3]).write_bytes(b"")
    return found


def test_the_shared_store_gives_what_was_heard(clips: TaskClips, tmp_path: Path) -> None:
    mean, both = Counting(FRONTEND, deviation=False), Counting(FRONTEND, deviation=True)
    plain = clip_vectors.embed_clips(clips, {"m": mean, "b": both}, WINDOWING, tmp_path / "npz")
    shared = tmp_path / "shared"
    first = clip_vectors.embed_clips(clips, {"m": mean}, WINDOWING, None, shared=shared)
    calls = mean.calls, both.calls
    # Another evaluation calls the model something else and adds one of its own.
    second = clip_vectors.embed_clips(clips, {"x": mean, "b": both}, WINDOWING, None, shared=shared)
    assert mean.calls == calls[0]
    assert both.calls > calls[1]
    np.testing.assert_array_equal(first.embeddings["m"], plain.embeddings["m"])
    np.testing.assert_array_equal(second.embeddings["x"], plain.embeddings["m"])
    np.testing.assert_array_equal(second.embeddings["b"], plain.embeddings["b"])
    assert np.isnan(second.embeddings["x"][3]).all()
    assert first.unusable == second.unusable == plain.unusable
    calls = mean.calls, both.calls
    third = clip_vectors.embed_clips(clips, {"b": both, "m": mean}, WINDOWING, None, shared=shared)
    assert (mean.calls, both.calls) == calls
    assert third.unusable == [UnusableClip(3, clips.frame["path"].iloc[3], "empty")]
    clip_vectors.embed_clips(clips, {"m": mean}, Windowing(0.5, 2), None, shared=shared)
    assert mean.calls > calls[0]
    assert len(list(shared.iterdir())) == 2


def test_a_writer_that_was_killed_loses_nothing_it_had_finished(clips: TaskClips, tmp_path: Path) -> None:
    mean = Counting(FRONTEND, deviation=False)
    want = clip_vectors.embed_clips(clips, {"m": mean}, WINDOWING, None, shared=tmp_path / "shared")
    store = ClipStore(tmp_path / "shared", clips, WINDOWING)
    (store.folder / artifact.MARKER).unlink()
    found = store.read(mean.digest())
    assert found is not None
    np.testing.assert_array_equal(found, want.embeddings["m"])
    rows = StoreReader(store.folder).rows
    assert list(rows["clip_id"]) == list(clips.frame["clip_id"])
    assert list(rows["status"]) == ["rejected" if row == 3 else "ok" for row in range(12)]
    assert store.read("0" * 64) is None
    assert ClipStore(tmp_path / "other", clips, WINDOWING).read(mean.digest()) is None


def test_what_an_earlier_evaluation_left_beside_it_is_taken_over(clips: TaskClips, tmp_path: Path) -> None:
    mean = Counting(FRONTEND, deviation=False)
    want = clip_vectors.embed_clips(clips, {"old": mean}, WINDOWING, tmp_path / "npz")
    calls = mean.calls
    got = clip_vectors.embed_clips(
        clips, {"m": mean}, WINDOWING, None, others=[tmp_path / "npz"], shared=tmp_path / "shared"
    )
    assert mean.calls == calls
    np.testing.assert_array_equal(got.embeddings["m"], want.embeddings["old"])
    assert got.unusable == want.unusable
    stored = ClipStore(tmp_path / "shared", clips, WINDOWING).read(mean.digest())
    assert stored is not None
    np.testing.assert_array_equal(stored, want.embeddings["old"])


def task() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    labels = np.array(["kick", "snare", "tom"])[np.arange(60) % 3]
    embedding = generator.standard_normal((60, 5)).astype(np.float32)
    embedding[:, 0] += 1.5 * (np.arange(60) % 3)
    return embedding, labels, np.arange(60) // 3 % 4


@pytest.mark.parametrize("probe", probes.PROBES)
def test_probabilities_are_scikit_learns_fold_by_fold(probe: str) -> None:
    embedding, labels, folds = task()
    found = probe_answers.answers(probe, embedding, labels, folds, ProbeSettings(5, 0.1))
    for fold in range(4):
        inside = folds == fold
        model = (
            KNeighborsClassifier(5, metric="cosine")
            if probe == "knn"
            else make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1_000))
        )
        model.fit(embedding[~inside].astype(np.float64), labels[~inside])
        features = embedding[inside].astype(np.float64)
        np.testing.assert_allclose(found.probabilities[inside], model.predict_proba(features), atol=1e-6)
        np.testing.assert_array_equal(found.predicted[inside], model.predict(features))
    assert list(found.classes) == ["kick", "snare", "tom"]


def test_a_class_that_training_lacks_has_probability_zero() -> None:
    embedding, labels, folds = task()
    labels = labels.astype("<U8")
    labels[folds == 2] = "only"
    found = probe_answers.answers("knn", embedding, labels, folds, ProbeSettings())
    only = list(found.classes).index("only")
    assert (found.probabilities[folds == 2, only] == 0).all()
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0, rtol=1e-6)


def test_answers_are_fitted_once_and_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, labels, folds = task()
    first = probe_answers.answers("linear", embedding, labels, folds, ProbeSettings(), tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("fitted again")

    with monkeypatch.context() as patched:
        patched.setattr(probes, "out_of_fold", refuse)
        # The number of neighbours is nothing to logistic regression.
        again = probe_answers.answers("linear", embedding, labels, folds, ProbeSettings(9), tmp_path)
        for changed in (
            ("linear", embedding + 1, labels, folds, ProbeSettings()),
            ("linear", embedding, labels, 3 - folds, ProbeSettings()),
            ("linear", embedding, labels[::-1].copy(), folds, ProbeSettings()),
            ("linear", embedding, labels, folds, ProbeSettings(logistic_c=1.0)),
            ("knn", embedding, labels, folds, ProbeSettings()),
        ):
            with pytest.raises(AssertionError, match="fitted again"):
                probe_answers.answers(*changed, tmp_path)
    np.testing.assert_array_equal(first.predicted, again.predicted)
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"damaged")
    repaired = probe_answers.answers("linear", embedding, labels, folds, ProbeSettings(), tmp_path)
    np.testing.assert_array_equal(first.probabilities, repaired.probabilities)
