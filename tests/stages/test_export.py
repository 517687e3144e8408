"""``ossicle export`` over a recipe's runs: which are chosen, what is written, what is reused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pipeline import artifact
from pipeline.config import Recipe, StudentConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.errors import ConfigError, MissingArtifactError
from pipeline.recipe import Run
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import TeacherCredit, load_student, save_student
from stages import export, locations
from tests.deploy import tiny

FILES = {
    "student_fp32.onnx", "student_s8s8.onnx", "student_u8s8.onnx", "frontend.onnx", "student.safetensors",
    "student.json", "parity.json", "artifact.json",
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of one run of two seeds and a control, the store and two of the runs made, none exported."""
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "paths": {"artifacts": tmp_path},
            "embed": {"frontend": tiny.FRONTEND.model_dump()},
            "student": {"width": 0.25},
            "runs": {
                "distilled": {"seeds": [0, 1]},
                "untrained": {"set": {"train.control": "random"}, "seeds": [0]},
            },
            "headline": "distilled",
            "jobs": 2,
        }
    )
    tiny.store(tmp_path / "store", tiny.log_mels(24), ["train", "train", "validation"] * 8)
    monkeypatch.setattr(locations, "store_folder", lambda recipe: tmp_path / "store")
    monkeypatch.setattr(locations, "run_folder", lambda run: tmp_path / "run" / run.label)
    return recipe


def train(recipe: Recipe, name: str, seed: int) -> None:
    """Save a random student as the finished run ``name-seed``."""
    folder = locations.run_folder(Run(name, seed, recipe))
    torch.manual_seed(seed)
    config = StudentConfig(width=0.25)
    student = NormalisedStudent(build_student(config, tiny.MELS), tiny.MEAN, tiny.STD)
    save_student(
        folder, student.eval(), config, tiny.FRONTEND, TeacherCredit(name="aisfx", licence="CC-BY-4.0")
    )
    artifact.finish(folder, kind="run", config={"name": name, "seed": seed}, inputs={})


def run(recipe: Recipe, *only: str) -> tuple[Path, str]:
    text = io.StringIO()
    folder = export.run(recipe, console=Console(file=text, width=200), only=only)
    return folder, text.getvalue()


def test_every_finished_run_is_exported_once_and_controls_are_not(recipe: Recipe, tmp_path: Path) -> None:
    for name, seed in (("distilled", 0), ("distilled", 1), ("untrained", 0)):
        train(recipe, name, seed)
    folder, printed = run(recipe)
    made = sorted((tmp_path / "export").iterdir())
    assert [f.name.rsplit("-", 1)[0] for f in made] == ["distilled-seed0", "distilled-seed1"]
    assert folder == made[0]
    assert all({p.name for p in f.iterdir()} == FILES for f in made)
    assert "distilled-seed1" in printed
    exported = load_student(folder).state_dict()
    trained = load_student(tmp_path / "run" / "distilled-seed0").state_dict()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)

    times = {p: p.stat().st_mtime_ns for f in made for p in f.iterdir()}
    (made[1] / "artifact.json").unlink()
    (made[1] / ".student_fp32.onnx.left").mkdir()
    _, printed = run(recipe)
    assert "1 of 2 reused" in printed
    after = {p: p.stat().st_mtime_ns for f in made for p in f.iterdir()}
    assert {p for p in times if after[p] == times[p]} == {p for p in times if p.parent == made[0]}
    assert set(after) == set(times)


def test_only_chooses_runs_and_unlocks_controls(recipe: Recipe) -> None:
    train(recipe, "untrained", 0)
    folder, _ = run(recipe, "untrained")
    assert folder.name.startswith("untrained-seed0-")


def test_nothing_trained_and_wrong_names_are_told(recipe: Recipe) -> None:
    with pytest.raises(MissingArtifactError) as missing:
        run(recipe)
    assert missing.value.run == "ossicle distill tiny"
    with pytest.raises(ConfigError, match="has no run") as wrong:
        run(recipe, "distiled")
    assert "distilled" in str(wrong.value.expected)


def test_rows_by_cluster_weights_alone_and_what_to_ship_are_in_the_folder(recipe: Recipe) -> None:
    settings = {"calibration_draw": "cluster_nearest", "calibration_clusters": 2, "weight_only_bits": (4,)}
    drawn = recipe.model_copy(update={"export": recipe.export.model_copy(update=settings)})
    train(recipe, "distilled", 0)
    folder, _ = run(drawn, "distilled")
    assert {path.name for path in folder.iterdir()} == FILES | {"student_w4.onnx"}
    report = json.loads((folder / "parity.json").read_text())
    assert report["student_w4"]["file_bytes"] == (folder / "student_w4.onnx").stat().st_size
    assert set(report["student_s8s8"]["by_length"]) == {"12", "41", "96"}
    assert "2 clusters" in metadata_props.read(folder / "student_s8s8.onnx")["calibration_draw"]
    kept = report["student_s8s8"]
    faithful = kept["centred_cosine"] >= 0.99 and kept["neighbour_overlap"] >= 0.97
    assert report["shipping"]["ship"] == {"file_bytes": "s8s8" if faithful else "fp32"}
    assert artifact.read(folder).summary["ship"] == report["shipping"]["ship"]
    assert folder != locations.export_folder(Run("distilled", 0, recipe)), "another draw is another export"
