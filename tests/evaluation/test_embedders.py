"""Windows, clip vectors and every kind of model, against the same steps written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from pipeline.config import LogMelConfig, StudentConfig, TeacherConfig, canonical_json
from pipeline.errors import AudioError, ConfigError, MissingArtifactError, WeightsError
from pipeline.evaluation import clip_vectors, embedders
from pipeline.evaluation.clips import TaskClips, from_table, table_task
from pipeline.evaluation.window_batch import UnusableClip, WindowBatch, Windowing, batches, clip_windows
from pipeline.frontends.log_mel import LogMel
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import SavedStudent, save_student
from pipeline.teachers.synthetic import TinyTeacher
from tests.evaluation import sounds, stored
from tests.evaluation.onnx_students import onnx_file

FRONTEND = LogMelConfig(mels=16)
WINDOWING = Windowing(0.5, 3)
STUDENT = StudentConfig(width=0.25)


@pytest.fixture
def clips(tmp_path: Path) -> TaskClips:
    rows = sounds.write_folder(tmp_path / "audio")
    table = tmp_path / "audio" / "clips.csv"
    table.write_text("path,label\n" + "\n".join(",".join(row) for row in rows))
    return from_table(table_task(table, "label", None), table)


def saved_student(folder: Path, seed: int = 0) -> SavedStudent:
    torch.manual_seed(seed)
    student = NormalisedStudent(build_student(STUDENT, FRONTEND.mels), -4.0, 3.0)
    return save_student(folder, student.eval(), STUDENT, FRONTEND)


def batch(seconds: float = 0.5, windows: int = 3) -> WindowBatch:
    waveforms = [sounds.waveform(label, 1, seconds, 44_100) for label in sounds.CLASSES[:windows]]
    return WindowBatch(torch.from_numpy(np.stack(waveforms)), np.arange(windows))


def test_windows_spread_over_the_clip_and_pad_a_short_one(tmp_path: Path) -> None:
    ramp = np.linspace(0.1, 0.9, 4 * 44_100).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", ramp, 44_100, subtype="FLOAT")
    windows = clip_windows(tmp_path / "long.wav", Windowing(1.0, 3))
    assert windows.shape == (3, 44_100)
    np.testing.assert_array_equal(windows, [ramp[:44_100], ramp[66_150:110_250], ramp[-44_100:]])
    soundfile.write(tmp_path / "short.wav", ramp[:1_000], 44_100, subtype="FLOAT")
    (short,) = clip_windows(tmp_path / "short.wav", Windowing(1.0, 3))
    np.testing.assert_array_equal(short, np.pad(ramp[:1_000], (0, 43_100)))


def test_batches_keep_clips_whole_and_name_the_unusable(clips: TaskClips, tmp_path: Path) -> None:
    paths = [*clips.frame["path"][:4], str(tmp_path / "absent.wav"), *clips.frame["path"][4:]]
    unusable: list[UnusableClip] = []
    rows = np.concatenate([b.clip for b in batches(paths, WINDOWING, unusable, batch_windows=4)])
    assert unusable == [UnusableClip(4, paths[4], "missing")]
    want = [[row] * len(clip_windows(Path(path), WINDOWING)) for row, path in enumerate(paths) if row != 4]
    assert list(rows) == [row for part in want for row in part]


def test_clip_vectors_are_means_of_windows(clips: TaskClips, tmp_path: Path) -> None:
    teacher, floor = TinyTeacher(), embedders.LogMelEmbedder(FRONTEND, deviation=True)
    models = {"tiny": embedders.TeacherEmbedder(teacher), "floor": floor}
    found = clip_vectors.embed_clips(clips, models, WINDOWING, tmp_path / "stores")
    log_mel = LogMel(FRONTEND)
    for row, path in enumerate(clips.frame["path"]):
        windows = clip_windows(Path(path), WINDOWING)
        want = teacher.embed(torch.from_numpy(windows))["embedding"].mean(dim=0)
        np.testing.assert_allclose(found.embeddings["tiny"][row], want, atol=1e-4)
        low = np.stack([soxr.resample(window, 44_100, 16_000, quality="HQ") for window in windows])
        mel = log_mel(torch.from_numpy(low)).numpy()
        want = np.concatenate([mel.mean(axis=2), mel.std(axis=2)], axis=1).mean(axis=0)
        np.testing.assert_allclose(found.embeddings["floor"][row], want, atol=1e-3)


class Counting(embedders.LogMelEmbedder):
    """A floor that counts how often it is asked."""

    calls = 0

    def embed(self, batch: WindowBatch) -> np.ndarray:
        self.calls += 1
        return super().embed(batch)


def test_vectors_on_disk_are_not_made_again(clips: TaskClips, tmp_path: Path) -> None:
    Path(clips.frame["path"].iloc[3]).write_bytes(b"")
    folder = tmp_path / "stores"
    model = Counting(FRONTEND, deviation=False)
    first = clip_vectors.embed_clips(clips, {"m": model}, WINDOWING, folder)
    calls = model.calls
    again = clip_vectors.embed_clips(clips, {"m": model}, WINDOWING, folder)
    assert model.calls == calls
    np.testing.assert_array_equal(first.embeddings["m"], again.embeddings["m"])
    assert np.isnan(again.embeddings["m"][3]).all()
    assert first.unusable == again.unusable == [UnusableClip(3, clips.frame["path"].iloc[3], "empty")]
    paths = [Path(path) for path in clips.frame["path"]]
    np.testing.assert_array_equal(
        stored.vectors(folder, model.digest(), paths), first.embeddings["m"].astype(np.float32)
    )
    clip_vectors.embed_clips(clips, {"m": model}, Windowing(0.5, 2), folder)
    assert model.calls > calls


def test_no_audio_at_all_is_an_error(clips: TaskClips, tmp_path: Path) -> None:
    for path in clips.frame["path"]:
        Path(path).unlink()
    with pytest.raises(AudioError, match="not one of 18 clips"):
        clip_vectors.embed_clips(clips, {"m": Counting(FRONTEND, deviation=False)}, WINDOWING, tmp_path)


def test_run_folder_and_its_random_floor(tmp_path: Path) -> None:
    saved = saved_student(tmp_path, seed=3)
    heard = batch()
    student = embedders.open_embedder(str(tmp_path), TeacherConfig())
    got = student.embed(heard)
    torch.manual_seed(3)
    network = NormalisedStudent(build_student(STUDENT, FRONTEND.mels), -4.0, 3.0).eval()
    with torch.inference_mode():
        want = network(heard.log_mel(LogMel(FRONTEND))).numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)
    before = torch.random.get_rng_state()
    floor = embedders.random_embedder(STUDENT, saved, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_allclose(floor.embed(heard), want, atol=1e-5)
    assert floor.digest() != embedders.random_embedder(STUDENT, saved, seed=4).digest()


def test_onnx_file_hears_the_log_mel_that_it_names(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "student.onnx", {"ossicle.frontend": canonical_json(FRONTEND)})
    heard = batch()
    got = embedders.open_embedder(str(path), TeacherConfig()).embed(heard)
    np.testing.assert_allclose(
        got, embedders.LogMelEmbedder(FRONTEND, deviation=False).embed(heard), atol=1e-5
    )


def test_models_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model is called"):
        embedders.open_embedder("nothing", TeacherConfig())
    with pytest.raises(MissingArtifactError):
        embedders.open_embedder(str(tmp_path), TeacherConfig())
    with pytest.raises(MissingArtifactError):
        embedders.open_embedder(str(tmp_path / "x.onnx"), TeacherConfig())
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(WeightsError, match="no ONNX file"):
        embedders.open_embedder(str(tmp_path / "x.onnx"), TeacherConfig())
    with pytest.raises(WeightsError, match="which log-mel"):
        embedders.open_embedder(str(onnx_file(tmp_path / "bare.onnx", {})), TeacherConfig())
