"""Three shipped recipes, no code: a CP-ResNet fine-tuned on labels, its student, and that student's student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe, TeacherConfig
from pipeline.errors import ConfigError, MissingArtifactError
from pipeline.students.saved import read_description
from pipeline.teachers.registry import build_teacher
from stages import distill, embed, finetune, manifest
from tests.finetuning.labelled_sounds import write_sounds

QUIET = Console(quiet=True)
SMALL = (
    "embed.window_seconds=0.5", "embed.shard_rows=16", "embed.chunk_rows=8", "embed.workers=1",
    "embed.frontend.mels=32", "targets.components=8", "train.steps=10", "train.batch_size=8",
    "train.roll_frames=2", "train.time_mask_frames=2", "jobs=1",
)  # fmt: skip
FAST_TEACHER = (
    "finetune.steps=8", "finetune.batch_size=8", "finetune.warmup_steps=2", "finetune.clip_seconds=0.5",
    "student.width=0.25",
)  # fmt: skip


@pytest.mark.timeout(900)
def test_teacher_student_and_smaller_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    table = write_sounds(sounds)
    given = f'manifest.inputs=[{{kind="csv", path="{table}", dataset="sounds"}}]'

    def load(name: str, *more: str) -> Recipe:
        return recipes.load(name, (given, *SMALL, *more))

    student = load("esc10_student", "student.width=0.5")
    manifest.run(student, console=QUIET)
    with pytest.raises(MissingArtifactError, match="no finished run"):
        embed.run(student, console=QUIET)

    taught = finetune.run(load("esc10_teacher", *FAST_TEACHER), console=QUIET)
    assert taught.name.startswith("esc10_teacher-cp_resnet-seed0-fold1-")
    assert 0.0 <= artifact.read(taught).summary["accuracy"] <= 1.0
    assert finetune.run(load("esc10_teacher", *FAST_TEACHER), console=QUIET) == taught

    embed.run(student, console=QUIET)
    assistant = distill.run(student, console=QUIET)
    credit = read_description(assistant).teacher
    assert credit is not None
    assert credit.name == taught.name

    smaller = load("esc10_smaller")
    embed.run(smaller, console=QUIET)
    last = distill.run(smaller, console=QUIET)
    credit = read_description(last).teacher
    assert credit is not None
    assert credit.name == assistant.name
    assert read_description(last).student.name == "cp_mobile_6k"

    # The student is judged by a head on it, frozen: the same command once more.
    head = (
        "finetune.trained=head", f'finetune.teacher={{name="run:{last}", options={{window_seconds=0.5}}}}',
        "finetune.freq_mixstyle_probability=0", "finetune.held_out_folds=[1, 2]",
    )  # fmt: skip
    scores = finetune.run(load("esc10_teacher", *FAST_TEACHER, *head), console=QUIET)
    found = json.loads((scores / "scores.json").read_text())
    assert set(found["folds"]) == {"1", "2"}
    assert sum(map(sum, found["confusion"]["counts"])) == 24
    folders = list(found["folders"].values())
    teacher = build_teacher(TeacherConfig(name=f"run:{folders[0]}"))
    assert teacher.outputs == ("embedding", "logits")
    with pytest.raises(ConfigError, match="several runs"):
        build_teacher(TeacherConfig(name=f"run:{tmp_path}/artifacts/finetune/esc10_teacher-*"))
