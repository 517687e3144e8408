"""Members end to end on synthetic sounds: they learn, resume bit-equal, and embed as run:FOLDER."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import accuracy_score, confusion_matrix

from pipeline import recipe as recipes
from pipeline.artifact import file_digest
from pipeline.config import Recipe, TeacherConfig
from pipeline.errors import ConfigError, DigestMismatchError, WeightsError
from pipeline.finetuning.job import Member, run_member
from pipeline.manifest import Manifest
from pipeline.teachers.cp import FAMILY
from pipeline.teachers.finetuned import FinetunedTeacher
from pipeline.teachers.registry import build_teacher
from pipeline.training.loop import TrainingStopped
from pipeline.training.metrics import read_metrics
from stages.finetune import members_of
from tests.finetuning.labelled_sounds import CLASSES, made_manifest, recipe, write_sounds


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def manifest(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return made_manifest(recipe(tmp_path_factory.mktemp("manifest"), table))


def member(made: Recipe, manifest: Manifest) -> Member:
    (one,) = members_of(made, manifest)
    return one


def train(made: Recipe, manifest: Manifest, **options: Any) -> Member:
    one = member(made, manifest)
    run_member(one, manifest, made.paths.artifacts / "waveforms", **options)
    return one


def test_a_student_from_scratch_learns_scores_and_embeds(
    table: Path, manifest: Manifest, tmp_path: Path
) -> None:
    made = recipe(tmp_path, table, finetune={"steps": 40})
    one = train(made, manifest)
    found = np.load(one.folder / "held_out.npz")
    summary = json.loads((one.folder / "artifact.json").read_text())["summary"]
    guess = found["logits"].argmax(axis=1)
    assert summary["held_out_clips"] == len(guess) == 12
    assert summary["training_clips"] == 24
    assert summary["accuracy"] == accuracy_score(found["truth"], guess) > 0.6
    confusion = json.loads((one.folder / "confusion.json").read_text())
    assert confusion["classes"] == list(CLASSES)
    assert confusion["counts"] == confusion_matrix(found["truth"], guess).tolist()
    assert (one.folder / "confusion.png").read_bytes().startswith(b"\x89PNG")
    held_out = manifest.frame[manifest.frame["fold"] == 1].set_index("clip_id").loc[found["clip_id"]]
    assert [CLASSES[code] for code in found["truth"]] == held_out["label"].tolist()
    # The folder alone embeds, and gives the logits that were scored.
    teacher = build_teacher(TeacherConfig(name=f"run:{one.folder}", dtype="float32"))
    sounds = [soundfile.read(table.parent / path, dtype="float32")[0] for path in held_out["path"]]
    logits = teacher.embed(torch.from_numpy(np.stack(sounds)), ("logits",))["logits"]
    torch.testing.assert_close(logits, torch.from_numpy(found["logits"]), rtol=1e-3, atol=1e-3)
    losses = [line["validation_loss"] for line in read_metrics(one.folder) if "validation_loss" in line]
    assert len(losses) == 10
    assert losses[-1] < losses[0]


EVERYTHING = {
    "freq_mixstyle_probability": 0.7, "mixup_alpha": 0.3, "roll_ms": 20.0, "freq_mask_rows": 4,
    "time_mask_frames": 3, "label_smoothing": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("augmented", [{}, EVERYTHING], ids=["plain", "augmented"])
def test_a_stopped_member_goes_on_with_the_same_bits(
    augmented: dict[str, Any], table: Path, manifest: Manifest, tmp_path: Path
) -> None:
    whole = train(recipe(tmp_path / "whole", table, finetune=augmented), manifest)
    made = recipe(tmp_path / "parts", table, finetune=augmented)
    for stop in (3, 5, 11):
        steps: list[int] = []
        with pytest.raises(TrainingStopped):
            train(
                made, manifest, on_progress=lambda p, steps=steps: steps.append(p.step),
                should_stop=lambda steps=steps, stop=stop: steps[-1:] == [stop],
            )  # fmt: skip
    parts = train(made, manifest)
    for name in ("student.safetensors", "classifier.safetensors", "held_out.npz"):
        left, right = (one.folder / name for one in (whole, parts))
        if name.endswith("npz"):
            assert np.array_equal(np.load(left)["logits"], np.load(right)["logits"])
        else:
            assert file_digest(left) == file_digest(right)
    assert [line["step"] for line in read_metrics(parts.folder)] == [
        line["step"] for line in read_metrics(whole.folder)
    ]


def test_seeds_and_folds_give_other_members(table: Path, manifest: Manifest, tmp_path: Path) -> None:
    made = recipe(tmp_path, table, finetune={"held_out_folds": [1, 3]}, runs={"small": {"seeds": [0, 1]}})
    members = members_of(made, manifest)
    assert [m.label for m in members] == [
        "small-seed0-fold1", "small-seed0-fold3", "small-seed1-fold1", "small-seed1-fold3",
    ]  # fmt: skip
    assert len({m.folder for m in members}) == 4
    assert [m.label for m in members_of(made, manifest, ("small-seed1",))] == [m.label for m in members[2:]]
    with pytest.raises(ConfigError, match="no member"):
        members_of(made, manifest, ("large",))
    # One fold more leaves the members there are where they are.
    more = recipe(tmp_path, table, finetune={"held_out_folds": [1, 2, 3]}, runs={"small": {"seeds": [0, 1]}})
    assert {m.folder for m in members} < {m.folder for m in members_of(more, manifest)}


def checkpoint(folder: Path) -> dict[str, Any]:
    """Write an own checkpoint of CP-Mobile; return the keys of its teacher."""
    torch.manual_seed(7)
    path = folder / "own.pt"
    torch.save(FAMILY["cp_mobile_6k"].network(4).state_dict(), path)
    return {"name": "cp_mobile_6k", "weights": str(path), "trust_sha256": file_digest(path)}


def test_a_whole_teacher_is_trained_and_found_again(table: Path, manifest: Manifest, tmp_path: Path) -> None:
    given = checkpoint(tmp_path)
    keys = {"teacher": given, "freq_mixstyle_probability": 0.5, "clip_seconds": 0.5, "steps": 30}
    made = recipe(tmp_path / "made", table, finetune=keys, paths={
        "artifacts": str(tmp_path / "made"), "cache": str(tmp_path / "cache"),
    })  # fmt: skip
    one = train(made, manifest)
    found = np.load(one.folder / "held_out.npz")
    assert accuracy_score(found["truth"], found["logits"].argmax(axis=1)) > 0.6
    teacher = build_teacher(
        TeacherConfig(name=f"run:{one.folder}", dtype="float32"), cache=tmp_path / "cache"
    )
    assert isinstance(teacher, FinetunedTeacher)
    base = build_teacher(TeacherConfig(**given, dtype="float32"), cache=tmp_path / "cache")
    assert (teacher.sample_rate_hz, teacher.window_samples) == (32_000, 16_000)
    waves = 0.1 * torch.randn(2, 16_000)
    asked = ("embedding", "logits", "frames", "layer.2")
    tuned, before = teacher.embed(waves, asked), base.embed(waves, asked)
    assert tuned["logits"].shape == (2, len(CLASSES))
    for name in ("embedding", "frames", "layer.2"):
        assert (tuned[name] - before[name]).abs().max() > 1e-3, name
    assert teacher.digest() != base.digest()
    # Another file in the place of the first is noticed.
    torch.manual_seed(8)
    torch.save(FAMILY["cp_mobile_6k"].network(4).state_dict(), tmp_path / "own.pt")
    record = json.loads((one.folder / "teacher.json").read_text())
    record["teacher"]["trust_sha256"] = file_digest(tmp_path / "own.pt")
    (one.folder / "teacher.json").write_text(json.dumps(record))
    with pytest.raises(DigestMismatchError, match="another one now"):
        build_teacher(TeacherConfig(name=f"run:{one.folder}"), cache=tmp_path / "cache")


@pytest.mark.parametrize("keys", [{}, {"roll_ms": 10.0}], ids=["embedded before", "embedded in every batch"])
def test_a_head_alone_learns_on_a_frozen_teacher(
    keys: dict[str, Any], table: Path, manifest: Manifest, tmp_path: Path
) -> None:
    steps = {"steps": 60 if not keys else 15, "clip_seconds": 0.5}
    given = {"teacher": {"name": "tiny"}, "trained": "head", **steps, **keys}
    one = train(recipe(tmp_path, table, finetune=given), manifest)
    assert one.label == "tiny-seed0-fold1"
    found = np.load(one.folder / "held_out.npz")
    assert accuracy_score(found["truth"], found["logits"].argmax(axis=1)) > 0.6
    teacher = build_teacher(TeacherConfig(name=f"run:{one.folder}"))
    tiny = build_teacher(TeacherConfig(name="tiny"))
    waves = 0.1 * torch.randn(2, 22_050)
    made = teacher.embed(waves, ("embedding", "logits", "frames"))
    assert torch.equal(made["embedding"], tiny.embed(waves)["embedding"])
    assert made["logits"].shape == (2, len(CLASSES))
    content = bytearray((one.folder / "teacher.safetensors").read_bytes())
    content[-1] ^= 1
    (one.folder / "teacher.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256"):
        build_teacher(TeacherConfig(name=f"run:{one.folder}"))


def test_what_cannot_be_trained_says_so(table: Path, manifest: Manifest, tmp_path: Path) -> None:
    made = recipe(tmp_path, table, finetune={"teacher": {"name": "tiny"}, "trained": "whole"})
    with pytest.raises(ConfigError, match="cannot be trained whole"):
        train(made, manifest)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("finetune.trained=head", "nothing to freeze"),
        ("finetune.dir_probability=0.5", "wants dir_folder"),
        ("finetune.held_out_folds=[1, 1]", "twice"),
        ("finetune.steps=0", "greater than or equal to 1"),
    ],
)
def test_impossible_keys_are_refused(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes.load("demo", [key])
