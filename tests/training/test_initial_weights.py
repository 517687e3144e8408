"""Runs that start from a checkpoint, and DyMN's temperature along a run: named by content, resumed equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.artifact import file_digest
from pipeline.config import Recipe
from pipeline.students.dymn import DyMN
from pipeline.students.saved import load_student, read_description
from pipeline.training.job import run_job
from pipeline.training.loop import Progress, TrainingStopped
from stages import locations
from tests.training.small_store import small_job, small_recipe, weights, write_store

WIDTH = 0.05


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("weights") / "store", small_recipe())


def dymn(**changes: Any) -> Recipe:
    return small_recipe(
        **{
            "student.name": "dymn10", "student.width": WIDTH, "student.options": {"annealing_share": 0.5},
            "train.steps": 8, "train.validate_every": 4, "train.ema_decay": 0.5, **changes,
        }
    )  # fmt: skip


def published(path: Path) -> Path:
    """Write a file as the authors do: their names, a classifier, no temperature."""
    torch.manual_seed(11)
    torch.save(DyMN(width=WIDTH, num_classes=5).state_dict(), path)
    return path


def test_the_temperature_falls_is_saved_and_resumes_bit_equal(store: Path, tmp_path: Path) -> None:
    recipe = dymn()
    whole = run_job(small_job(store, tmp_path / "whole", recipe))
    stopped: list[int] = []

    def stop() -> bool:
        return bool(stopped and stopped[-1] == 3)

    def note(progress: Progress) -> None:
        stopped.append(progress.step)

    job = small_job(store, tmp_path / "parts", recipe)
    with pytest.raises(TrainingStopped):
        run_job(job, on_progress=note, should_stop=stop)
    held = load_file(job.folder / "checkpoint.safetensors")
    seen = [float(v) for k, v in held.items() if k.endswith("backbone.temperature")]
    assert seen and all(1.0 < value < 30.0 for value in seen)
    parts = run_job(job)
    ours, theirs = weights(parts.folder), weights(whole.folder)
    assert ours == theirs
    student = load_student(whole.folder).backbone
    assert isinstance(student, DyMN)
    assert float(student.layers[3].depth_conv.temperature) == 1.0  # type: ignore[union-attr]
    constant = dymn(**{"student.options": {"temperature_schedule": "constant"}, "train.steps": 2})
    kept = load_student(run_job(small_job(store, tmp_path / "constant", constant)).folder).backbone
    assert float(kept.layers[3].depth_conv.temperature) == 30.0  # type: ignore[union-attr, index]


def test_a_run_starts_at_the_file_and_says_so(store: Path, tmp_path: Path) -> None:
    path = published(tmp_path / "dymn.pt")
    start = {"student.weights": str(path), "student.trust_sha256": file_digest(path), "train.steps": 0}
    done = run_job(small_job(store, tmp_path / "started", dymn(**start)))
    given, got = torch.load(path, weights_only=True), load_file(done.folder / "student.safetensors")
    taken = [name for name in given if not name.startswith("classifier.")]
    assert all(torch.equal(got[f"backbone.{name}"], given[name]) for name in taken)
    record = done.summary["started_from"]
    assert (record["file"], record["sha256"]) == ("dymn.pt", file_digest(path))
    assert any("classifier" in note for note in record["notes"])
    saved = read_description(done.folder)
    assert saved.started_from is not None
    assert saved.started_from.model_dump(mode="json") == record
    assert str(tmp_path) not in json.dumps(saved.model_dump(mode="json"))
    random = run_job(small_job(store, tmp_path / "random", dymn(**{**start, "train.control": "random"})))
    assert "started_from" not in random.summary
    plain = run_job(small_job(store, tmp_path / "plain", dymn(**{"train.control": "random"})))
    first, second = (load_file(one.folder / "student.safetensors") for one in (random, plain))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_is_named_by_the_file_s_content(tmp_path: Path) -> None:
    recipe = dymn(**{"paths.artifacts": tmp_path / "artifacts"})
    artifact.finish(
        locations.manifest_folder(recipe), kind="manifest", config=locations.manifest_config(recipe), inputs={},
        summary={"content": "0" * 64},
    )  # fmt: skip
    write_store(Path(str(locations.store_folder(recipe))), recipe, rows=40)
    one = published(tmp_path / "one.pt")
    copy = Path(shutil.copy(one, tmp_path / "copy.pt"))
    other = tmp_path / "other.pt"
    torch.save(DyMN(width=WIDTH).state_dict(), other)

    def folder(path: Path | None, **more: Any) -> Path:
        changed = recipe if path is None else recipes.change(recipe, {"student.weights": path, **more})
        return locations.run_folder(recipes.expand(changed)[0])

    assert folder(one) == folder(copy) == folder(one, **{"student.trust_sha256": "0" * 64})
    assert len({folder(None), folder(one), folder(other)}) == 3
    random = {"train.control": "random"}
    assert folder(one, **random) == folder(other, **random)
