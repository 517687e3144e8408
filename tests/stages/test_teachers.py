"""``ossicle teachers`` and ``ossicle fetch teacher``, as a user calls them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from pipeline.errors import ConfigError, UnknownNameError, WeightsError
from pipeline.teachers import weights
from pipeline.teachers.catalogue import entries
from stages import cli
from tests.teachers.checkpoint_table import enter, saved
from tests.teachers.file_server import Served, serving
from tests.teachers.tiny_graphs import waveform_graph


def ossicle(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_every_teacher_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    printed = ossicle("teachers").stdout
    for entry in entries(tmp_path / "ossicle"):
        assert entry.name in printed
    assert "ossicle fetch teacher aisfx" in printed
    assert "CC BY 4.0" in printed
    assert "your file" in printed


def test_show_says_who_publishes_what() -> None:
    printed = ossicle("teachers", "show", "tflite").stdout
    entry = weights.CHECKPOINTS["yamnet"]
    for part in (
        entry.sha256 or "",
        entry.licence,
        "Kaggle Models",
        "embed.teacher.options.embedding = required",
    ):
        assert part in printed
    with pytest.raises(UnknownNameError, match="aisfx"):
        ossicle("teachers", "show", "asfix")


def test_check_exits_1_for_a_broken_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ossicle("teachers", "check", "tiny")
    assert kept.exit_code == 0
    assert "teacher tiny keeps the contract" in kept.stdout
    from pipeline.teachers.synthetic import TinyTeacher

    monkeypatch.setattr(TinyTeacher, "licence", "")
    broken = ossicle("teachers", "check", "tiny")
    assert broken.exit_code == 1
    assert "BROKEN attributes: licence is" in broken.stdout
    with pytest.raises(ConfigError):
        ossicle("teachers", "check", "tiny", "--set", "embed.teacher.dtype=bfloat16")


def test_a_teacher_that_a_recipe_declares_is_checked(tmp_path: Path) -> None:
    path = waveform_graph(tmp_path / "tiny.onnx", 100)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f"""
[embed.teacher]
name = "onnx"
weights = "{path}"
trust_sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}"

[embed.teacher.options]
sample_rate_hz = 8000
embedding = "hidden"
logits = "logits"
licence = "CC0-1.0"
citation = "none"
"""
    )
    done = ossicle("teachers", "check", str(recipe))
    assert done.exit_code == 0, done.stdout


def test_fetch_teacher_from_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved({"w": torch.ones(3)})
    digest = hashlib.sha256(content).hexdigest()
    enter(monkeypatch, "aisfx_other", teacher="aisfx")
    with serving(Served(content)) as base:
        call = [
            "fetch",
            "teacher",
            "aisfx_other",
            "--from",
            f"{base}/x.pt",
            "--set",
            f"paths.cache={tmp_path}",
        ]
        with pytest.raises(WeightsError) as caught:
            ossicle(*call)
        assert digest in str(caught.value)
        done = ossicle(*call, "--trust-sha256", digest)
    assert done.stdout.strip() == str(tmp_path / "teachers" / "aisfx_other")
    assert weights.is_present(weights.CHECKPOINTS["aisfx_other"], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fetch", "teacher"], "wants a name"),
        (["fetch", "teacher", "tiny"], "no published weights"),
        (["fetch", "teacher", "beats_iter3", "--from", "x.pt", "--trust-sha256", "abc"], "no SHA-256"),
        (["fetch", "teacher", "panns_cnn14", "--from", "nowhere.pth"], "nowhere.pth"),
        (["fetch", "teacher", "panns_cnn14"], "Cnn14_mAP=0.431.pth"),
    ],
)
def test_fetch_teacher_explains_itself(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises((ConfigError, WeightsError)) as caught:
        ossicle(*arguments)
    assert words in str(caught.value)


def test_options_of_a_teacher_are_not_taken_for_a_recipe() -> None:
    assert ossicle("fetch", "demo", "--from", "x").exit_code == 2
