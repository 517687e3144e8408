"""A finished run is a teacher: it hears audio through its own log-mel and gives what training left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, MissingArtifactError, WeightsError
from pipeline.frontends.log_mel import LogMel
from pipeline.students.saved import load_student
from pipeline.teachers.checker import check
from pipeline.teachers.registry import build_teacher
from pipeline.training.job import run_job
from tests.training.small_store import CLASSES, small_job, small_recipe, write_store


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two finished runs: distilled-seed0-aaa, and labels-seed0-bbb trained on labels."""
    top = tmp_path_factory.mktemp("runs")
    recipe = small_recipe(**{"train.steps": 6, "train.validate_every": 6})
    store = write_store(top / "store", recipe)
    run_job(small_job(store, top / "run" / "distilled-seed0-aaa", recipe))
    labels = small_recipe(**{"train.steps": 6, "train.validate_every": 6, "train.control": "labels",
                             "train.label_column": "label"})  # fmt: skip
    run_job(small_job(store, top / "run" / "labels-seed0-bbb", labels))
    return top / "run"


def teacher_of(folder: Path | str, **fields: object) -> object:
    return build_teacher(
        TeacherConfig.model_validate({"name": f"run:{folder}", "dtype": "float32", **fields})
    )


def test_embedding_and_projection_are_the_runs(runs: Path) -> None:
    folder = runs / "distilled-seed0-aaa"
    student = load_student(folder)
    frontend = small_recipe().embed.frontend
    waveforms = 0.2 * torch.randn(3, 9_000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = student(LogMel(frontend)(waveforms))
    teacher = build_teacher(TeacherConfig(name=f"run:{folder}", dtype="float32"))
    assert teacher.sample_rate_hz == frontend.sample_rate_hz
    assert teacher.outputs == ("embedding",)
    assert teacher.name == "distilled-seed0-aaa"
    torch.testing.assert_close(teacher.embed(waveforms)["embedding"], want)
    projecting = build_teacher(
        TeacherConfig(name=f"run:{folder}", dtype="float32", options={"embedding": "projection"})
    )
    head = load_file(folder / "projector.safetensors")
    projected = F.linear(want, head["linear.weight"], head["linear.bias"])
    assert projecting.embedding_dim == projected.shape[1] == 8
    torch.testing.assert_close(projecting.embed(waveforms)["embedding"], projected)
    assert projecting.digest() != teacher.digest()


def test_a_run_on_labels_gives_logits(runs: Path) -> None:
    folder = runs / "labels-seed0-bbb"
    teacher = build_teacher(TeacherConfig(name=f"run:{folder}", dtype="float32"))
    waveforms = 0.2 * torch.randn(2, 20_000, generator=torch.Generator().manual_seed(1))
    made = teacher.embed(waveforms, ["embedding", "logits"])
    head = load_file(folder / "classifier.safetensors")
    assert made["logits"].shape == (2, len(CLASSES))
    torch.testing.assert_close(made["logits"], F.linear(made["embedding"], head["weight"], head["bias"]))
    with pytest.raises(ConfigError, match="no projection"):
        teacher_of(folder, options={"embedding": "projection"})


def test_licence_and_credit_follow_the_runs_teacher(runs: Path) -> None:
    taught = build_teacher(TeacherConfig(name=f"run:{runs / 'distilled-seed0-aaa'}"))
    assert taught.licence == "CC0-1.0"
    assert "distilled from linear" in taught.citation
    alone = build_teacher(TeacherConfig(name=f"run:{runs / 'labels-seed0-bbb'}"))
    assert "no teacher" in alone.licence


@pytest.mark.parametrize("name", ["distilled-seed0-aaa", "labels-seed0-bbb"])
def test_it_keeps_the_contract(name: str, runs: Path) -> None:
    teacher = build_teacher(TeacherConfig(name=f"run:{runs / name}", options={"window_seconds": 0.5}))
    assert teacher.window_samples == 8_000
    assert [f"{f.part}: {f.problem}" for f in check(teacher) if not f.kept] == []


def test_a_pattern_names_one_finished_run(runs: Path, tmp_path: Path) -> None:
    exact = build_teacher(TeacherConfig(name=f"run:{runs / 'distilled-seed0-aaa'}"))
    (runs / "distilled-unfinished").mkdir(exist_ok=True)
    assert build_teacher(TeacherConfig(name=f"run:{runs}/distilled-*")).digest() == exact.digest()
    with pytest.raises(ConfigError, match="names several runs"):
        teacher_of(f"{runs}/*-seed0-*")
    for absent in (tmp_path / "nowhere", f"{runs}/assistant-*", runs / "distilled-unfinished"):
        with pytest.raises(MissingArtifactError, match="no finished run") as caught:
            teacher_of(absent)
        assert "ossicle distill" in str(caught.value)


def test_other_weights_are_another_digest_and_damage_is_refused(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(runs / "distilled-seed0-aaa", folder)
    before = build_teacher(TeacherConfig(name=f"run:{folder}")).digest()
    assert before == build_teacher(TeacherConfig(name=f"run:{runs / 'distilled-seed0-aaa'}")).digest()
    head = load_file(folder / "projector.safetensors")
    save_file({name: value + 1 for name, value in head.items()}, folder / "projector.safetensors")
    assert build_teacher(TeacherConfig(name=f"run:{folder}")).digest() != before
    save_file({"linear.weight": torch.zeros(2, 3)}, folder / "projector.safetensors")
    with pytest.raises(WeightsError, match="not this run's head"):
        teacher_of(folder)
    content = bytearray((folder / "student.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "student.safetensors").write_bytes(bytes(content))
    shutil.copy(runs / "distilled-seed0-aaa" / "projector.safetensors", folder)
    with pytest.raises(WeightsError, match="not the file that"):
        teacher_of(folder)
    with pytest.raises(WeightsError, match="its own weights"):
        teacher_of(folder, weights=folder / "student.safetensors")
    with pytest.raises(ConfigError, match="no option 'projection'"):
        teacher_of(runs / "distilled-seed0-aaa", options={"projection": True})
