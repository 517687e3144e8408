"""A student's own keys: read by its family, refused by any other, before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import Field

from pipeline import recipe as recipes
from pipeline.config import Section, StudentConfig
from pipeline.errors import ConfigError, UnknownNameError
from pipeline.students import build_student, options, students
from pipeline.students.registry import check_student
from stages import preflight


class TwoKeys(Section):
    depth: int = Field(2, ge=1)
    shape: str = "round"


@options.takes(TwoKeys)
def build(config: StudentConfig, mels: int) -> str:
    own = options.parse(TwoKeys, config)
    return f"{own.depth} {own.shape} {mels}"


def test_a_family_reads_its_keys_and_defaults() -> None:
    assert options.kind_of(build) is TwoKeys
    assert build(StudentConfig(options={"depth": 3}), 40) == "3 round 40"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dept": 3}, "did you mean depth"),
        ({"depth": 0}, "option 'depth'"),
        ({"depth": "x"}, "option 'depth'"),
    ],
)
def test_unknown_and_impossible_options_are_named(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        options.check(build, StudentConfig(name="mine", options=given))
    assert words in str(refused.value)
    assert "student 'mine'" in str(refused.value)


@pytest.mark.parametrize(
    "name", [n for n in students.names() if not options.kind_of(students.get(n)).model_fields]
)
def test_a_family_without_options_refuses_any(name: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match="has no option 'kernel'") as refused:
        build_student(StudentConfig(name=name, options={"kernel": 3}), 64)
    assert "it has no options" in str(refused.value)


def test_stages_refuse_options_before_any_work() -> None:
    recipe = recipes.overridden(["student.name=cnn4", "student.options={depth=3}"])
    with pytest.raises(ConfigError, match="has no option 'depth'"):
        preflight.check(recipe, "distill")
    with pytest.raises(UnknownNameError):
        check_student(StudentConfig(name="cnn5"))


def test_what_names_a_run_is_the_options_and_not_where_weights_lie(tmp_path: Path) -> None:
    plain = StudentConfig(name="mn10").counted()
    assert StudentConfig(name="mn10", weights=tmp_path / "a.pt").counted() == plain
    assert "options" not in plain
    assert StudentConfig(name="mn10", options={"strides": [2, 2, 2, 1]}).counted() != plain
