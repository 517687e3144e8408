"""The TESS recipes on a folder of TESS's form: a teacher's logits and the labels, every temperature and share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe, TeacherConfig
from pipeline.deploy.sessions import open_session, run_session
from pipeline.embedding import pool
from pipeline.store.reader import StoreReader
from pipeline.students.classifier import read_classes
from pipeline.students.saved import read_description
from pipeline.teachers.registry import build_teacher
from pipeline.training.job import run_job
from stages import distill, embed, export, finetune, locations, manifest
from tests.e2e.tess_folder import EMOTIONS, SPEAKERS, WORDS, write_folder
from tests.stages.in_process import embed_shards

QUIET = Console(quiet=True)
TEACHER = (
    'finetune.teacher={name="tiny"}', "finetune.trained=head", "finetune.steps=80", "finetune.batch_size=16",
    "finetune.learning_rate=0.05", "finetune.warmup_steps=2", "finetune.clip_seconds=0.4", "finetune.roll_ms=0",
)  # fmt: skip
STUDENT = (
    "embed.window_seconds=0.4", "embed.shard_rows=64", "embed.chunk_rows=32", "embed.workers=1",
    "student.width=0.3", "train.steps=6", "train.batch_size=16", "train.warmup_steps=2", "train.validate_every=3",
    "train.roll_frames=8", "train.time_mask_frames=8", "train.amp=off", "jobs=1", "export.int8=false",
)  # fmt: skip
GRID = [f"t{t}-{share}" for t in (1, 2, 3) for share in ("alpha0", "alpha05", "alpha1")]


@dataclass(frozen=True)
class Trained:
    """A recipe and its finished runs' folders by name, below the working folder of both recipes."""

    recipe: Recipe
    folders: dict[str, Path]
    place: Path

    def summary(self, name: str) -> dict[str, Any]:
        return artifact.read(self.folders[name]).summary

    def held_out(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folders[name] / "held_out.npz") as found:
            return dict(found)


def train_here(name: str, place: Path, only: tuple[str, ...] = ()) -> Trained:
    recipe = recipes.load(name, STUDENT)
    embed.run(recipe, console=QUIET)
    folders = {}
    for job in distill.jobs_of(recipe, only):
        run_job(job)
        folders[job.run.name] = job.folder.resolve()
    return Trained(recipe, folders, place)


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the sounds, their manifest and the teacher, which is the current one meanwhile."""
    folder = tmp_path_factory.mktemp("tess")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(pool, "embed_shards", embed_shards)
        assert write_folder(folder / "data" / "TESS") == len(EMOTIONS) * len(SPEAKERS) * len(WORDS)
        teacher = recipes.load("tess_wav2vec2", TEACHER)
        manifest.run(teacher, console=QUIET)
        finetune.run(teacher, console=QUIET, only=("words",))
        yield folder


@pytest.fixture(scope="module")
def small(working: Path) -> Trained:
    return train_here("tess_wav2small", working)


@pytest.fixture(scope="module")
def tiny(working: Path) -> Trained:
    return train_here("tess_wav2tiny", working, ("t2-alpha05", "t2-alpha1", "random"))


def test_every_cell_of_the_grid_has_its_confusion_matrix(small: Trained) -> None:
    assert set(small.folders) == {*GRID, "paper-t2-alpha05", "random"}
    held_out_words = len(WORDS) // 5
    for name in {*GRID, "paper-t2-alpha05"}:
        folder, summary, found = small.folders[name], small.summary(name), small.held_out(name)
        confusion = json.loads((folder / "confusion.json").read_text())
        guess = found["logits"].argmax(axis=1)
        assert len(guess) == summary["scored_clips"] == held_out_words * len(EMOTIONS) * len(SPEAKERS)
        assert confusion["classes"] == sorted([*(e for e in EMOTIONS if e != "ps"), "pleasant_surprise"])
        labels = range(len(EMOTIONS))
        want = sklearn.metrics.confusion_matrix(found["truth"], guess, labels=labels)
        assert confusion["counts"] == want.tolist()
        assert summary["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(found["truth"], guess))
        assert (folder / "confusion.png").is_file()
        assert read_classes(folder) == confusion["classes"]
        assert summary["control"] == "none"
        assert ("teacher_accuracy" in summary) == (not name.endswith("alpha1"))
    assert "accuracy" not in small.summary("random")


def test_no_word_is_trained_on_and_tested(small: Trained) -> None:
    rows = StoreReader(locations.store_folder(small.recipe)).rows
    words = {split: set(of.group) for split, of in rows.groupby("split")}
    assert not words["train"] & words["validation"]
    assert len(words["validation"]) == len(WORDS) // 5


def test_without_the_teacher_the_temperature_changes_nothing(small: Trained) -> None:
    weights = {name: (small.folders[name] / "student.safetensors").read_bytes() for name in GRID}
    assert weights["t1-alpha1"] == weights["t2-alpha1"] == weights["t3-alpha1"]
    others = {weights[name] for name in GRID}
    assert len(others) == len(GRID) - 2


@pytest.mark.parametrize("name", GRID)
def test_the_loss_is_the_formula_with_alpha_on_the_labels(small: Trained, name: str) -> None:
    run = next(r for r in recipes.expand(small.recipe) if r.name == name)
    temperature, alpha = run.recipe.loss.hinton_temperature, run.recipe.loss.hinton_alpha
    assert f"t{temperature:g}-alpha{alpha:g}".replace("0.5", "05") == name
    found = small.held_out(name)
    reader = StoreReader(locations.store_folder(small.recipe))
    (spec,) = (array for array in reader.meta.arrays if array.kind == "logits")
    stored = np.concatenate([reader.read_array(spec, shard) for shard in range(reader.meta.shards)])
    row_of = {clip: row for row, clip in enumerate(reader.rows.clip_id)}
    teacher = stored[[row_of[clip] for clip in found["clip_id"]]].astype(np.float64)
    student = found["logits"].astype(np.float64)
    soft, want = (scipy.special.log_softmax(x / temperature, axis=1) for x in (student, teacher))
    divergence = (np.exp(want) * (want - soft)).sum(axis=1)
    hard = -scipy.special.log_softmax(student, axis=1)[np.arange(len(student)), found["truth"]]
    each = alpha * hard + (1 - alpha) * temperature**2 * divergence
    assert small.summary(name)["validation_hinton"] == pytest.approx(each.mean(), rel=2e-3)


def test_wav2tiny_shares_the_store_and_its_export_answers_as_the_run_did(tiny: Trained) -> None:
    assert locations.store_folder(tiny.recipe) == locations.store_folder(
        recipes.load("tess_wav2small", STUDENT)
    )
    assert read_description(tiny.folders["t2-alpha05"]).student.name == "wav2tiny"
    folder = export.run(tiny.recipe, console=QUIET, only=("t2-alpha05",))
    session = open_session(folder / "student_fp32.onnx")
    assert [output.name for output in session.get_outputs()] == ["embedding", "logits"]
    reader = StoreReader(locations.store_folder(tiny.recipe), frontend=tiny.recipe.embed.frontend)
    log_mel = np.concatenate([
        reader.read_shard(shard, ("spectrogram",))["spectrogram"] for shard in range(reader.meta.shards)
    ])  # fmt: skip
    row_of = {clip: row for row, clip in enumerate(reader.rows.clip_id)}
    found = tiny.held_out("t2-alpha05")
    rows = [row_of[clip] for clip in found["clip_id"]]
    got = run_session(session, log_mel[rows, None].astype(np.float32), 1)
    np.testing.assert_allclose(got, found["logits"], atol=1e-3 * np.abs(got).max())


def test_a_student_of_the_grid_is_a_teacher_with_logits(tiny: Trained) -> None:
    teacher = build_teacher(TeacherConfig(name=f"run:{tiny.folders['t2-alpha1']}"))
    assert teacher.outputs == ("embedding", "logits")
    assert list(teacher.classes) == read_classes(tiny.folders["t2-alpha1"])  # type: ignore[attr-defined]
