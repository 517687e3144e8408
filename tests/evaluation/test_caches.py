"""Clip vectors in a shared store and probes' answers by content: the same as fresh ones, and made once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import artifact
from pipeline.config import LogMelConfig
from pipeline.evaluation import audio_digests, clip_vectors, embedders, probe_answers, probes
from pipeline.evaluation import clips as task_clips
from pipeline.evaluation.clips import TaskClips
from pipeline.evaluation.probes import ProbeSettings
from pipeline.evaluation.vector_store import VectorStore
from pipeline.evaluation.window_batch import UnusableClip, WindowBatch, Windowing
from pipeline.store.reader import StoreReader
from tests.evaluation import sounds

FRONTEND = LogMelConfig(mels=16)
WINDOWING = Windowing(0.5, 3)


class Counting(embedders.LogMelEmbedder):
    """A floor that counts how often it is asked."""

    calls = windows = 0

    def embed(self, batch: WindowBatch) -> np.ndarray:
        self.calls += 1
        self.windows += len(batch.clip)
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


def test_a_second_evaluation_and_a_second_task_of_the_same_clips_compute_nothing(
    clips: TaskClips, tmp_path: Path
) -> None:
    mean, both = Counting(FRONTEND, deviation=False), Counting(FRONTEND, deviation=True)
    plain = clip_vectors.embed_clips(clips, {"m": mean, "b": both}, WINDOWING, tmp_path / "alone")
    shared = tmp_path / "shared"
    first = clip_vectors.embed_clips(clips, {"m": mean}, WINDOWING, shared)
    calls = mean.calls, both.calls
    # Another evaluation calls the model something else and adds one of its own.
    second = clip_vectors.embed_clips(clips, {"x": mean, "b": both}, WINDOWING, shared)
    assert mean.calls == calls[0]
    assert both.calls > calls[1]
    np.testing.assert_array_equal(first.embeddings["m"], plain.embeddings["m"])
    np.testing.assert_array_equal(second.embeddings["x"], plain.embeddings["m"])
    np.testing.assert_array_equal(second.embeddings["b"], plain.embeddings["b"])
    assert np.isnan(second.embeddings["x"][3]).all()
    assert first.unusable == second.unusable == plain.unusable
    calls = mean.calls, both.calls
    third = clip_vectors.embed_clips(clips, {"b": both, "m": mean}, WINDOWING, shared)
    assert third.unusable == [UnusableClip(3, clips.frame["path"].iloc[3], "empty")]
    # Another task of the same sounds: other labels, other names, another order.
    frame = clips.frame.iloc[::-1].assign(label="one", clip_id=[f"other {row}" for row in range(12)])
    task = clips.task.model_copy(update={"name": "other"})
    other = clip_vectors.embed_clips(TaskClips(task, frame, {}), {"m": mean, "b": both}, WINDOWING, shared)
    np.testing.assert_array_equal(other.embeddings["b"], plain.embeddings["b"][::-1])
    # And one of some of them, of which a sound is there twice.
    some = clips.frame.iloc[[5, 1, 3]].reset_index(drop=True)
    copy = tmp_path / "copy.wav"
    copy.write_bytes(Path(some["path"].iloc[0]).read_bytes())
    some.loc[3] = {**some.loc[0].to_dict(), "path": str(copy)}
    found = clip_vectors.embed_clips(TaskClips(task, some, {}), {"m": mean}, WINDOWING, shared)
    np.testing.assert_array_equal(found.embeddings["m"], plain.embeddings["m"][[5, 1, 3, 5]])
    assert [clip.row for clip in found.unusable] == [2]
    assert (mean.calls, both.calls) == calls
    clip_vectors.embed_clips(clips, {"m": mean}, Windowing(0.5, 2), shared)
    assert mean.calls > calls[0]


def test_sounds_that_a_store_lacks_are_heard_alone(clips: TaskClips, tmp_path: Path) -> None:
    mean, both = Counting(FRONTEND, deviation=False), Counting(FRONTEND, deviation=True)
    want = clip_vectors.embed_clips(clips, {"m": mean, "b": both}, WINDOWING, tmp_path / "alone")
    windows = mean.windows
    part = TaskClips(clips.task, clips.frame.iloc[:7], {})
    clip_vectors.embed_clips(part, {"m": mean}, WINDOWING, tmp_path / "shared")
    known = mean.windows - windows
    got = clip_vectors.embed_clips(clips, {"m": mean, "b": both}, WINDOWING, tmp_path / "shared")
    assert mean.windows == 2 * windows
    assert 0 < known < windows
    for key in "mb":
        np.testing.assert_allclose(got.embeddings[key], want.embeddings[key], atol=1e-5)
    assert got.unusable == want.unusable
    # The file of a clip changes: the sound is another.
    path = Path(clips.frame["path"].iloc[0])
    path.write_bytes(Path(clips.frame["path"].iloc[8]).read_bytes())
    changed = clip_vectors.embed_clips(clips, {"m": mean}, WINDOWING, tmp_path / "shared")
    np.testing.assert_array_equal(changed.embeddings["m"][0], got.embeddings["m"][8])
    assert mean.windows == 2 * windows


def test_a_killed_run_goes_on_at_its_shard(
    clips: TaskClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    class Mortal(Counting):
        def embed(self, batch: WindowBatch) -> np.ndarray:
            if self.calls == 2:
                raise KilledError
            return super().embed(batch)

    def small(*arguments: Any, **options: Any) -> VectorStore:
        return VectorStore(*arguments, **options, shard_sounds=4)

    monkeypatch.setattr(clip_vectors, "VectorStore", small)
    want = clip_vectors.embed_clips(
        clips, {"m": Counting(FRONTEND, deviation=False)}, WINDOWING, tmp_path / "alone"
    )
    mortal, fresh = Mortal(FRONTEND, deviation=False), Counting(FRONTEND, deviation=False)
    with pytest.raises(KilledError):
        clip_vectors.embed_clips(clips, {"m": mortal}, WINDOWING, tmp_path / "shared")
    got = clip_vectors.embed_clips(clips, {"m": fresh}, WINDOWING, tmp_path / "shared")
    assert fresh.calls == 1
    np.testing.assert_array_equal(got.embeddings["m"], want.embeddings["m"])
    (folder,) = (tmp_path / "shared").glob("clips-*")
    reader = StoreReader(folder)
    assert sorted(reader.rows["status"]) == ["ok"] * 11 + ["rejected"]
    assert reader.rejects["reason"].tolist() == ["empty"]
    # A kill between the last shard and the marker loses nothing either.
    (folder / artifact.MARKER).unlink()
    again = clip_vectors.embed_clips(clips, {"m": fresh}, WINDOWING, tmp_path / "shared")
    assert fresh.calls == 1
    np.testing.assert_array_equal(again.embeddings["m"], want.embeddings["m"])


def test_a_file_is_read_again_only_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(tmp_path / name) for name in ("a", "b")]
    for path, content in zip(paths, (b"one", b"two"), strict=True):
        Path(path).write_bytes(content)
        os.utime(path, ns=(0, 10**18))
    want = [hashlib.sha256(content).hexdigest() for content in (b"one", b"two")]
    absent = [str(tmp_path / "c"), str(tmp_path), f"{tmp_path}/c.hdf5#1"]
    found = audio_digests.digests([*paths, *absent], tmp_path)
    assert found[:2] == want
    assert len(set(found)) == 5
    read = []
    file_digest = artifact.file_digest
    monkeypatch.setattr(artifact, "file_digest", lambda path: read.append(path) or file_digest(path))
    assert audio_digests.digests([*paths, *absent], tmp_path) == found
    assert read == []
    Path(paths[0]).write_bytes(b"six")
    for _ in range(2):
        # Too young to be trusted by its time: read each time.
        assert audio_digests.digests(paths, tmp_path) == [hashlib.sha256(b"six").hexdigest(), want[1]]
    assert read == [Path(paths[0])] * 2
    (tmp_path / audio_digests.INDEX).write_bytes(b"damaged")
    assert audio_digests.digests(paths[1:], tmp_path) == want[1:]
    pack = tmp_path / "pack.hdf5"
    pack.write_bytes(b"pack")
    rows = audio_digests.digests([f"{pack}#1", f"{pack}#2", str(pack)], tmp_path)
    assert len(set(rows)) == 3
    assert rows[2] == hashlib.sha256(b"pack").hexdigest()


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
