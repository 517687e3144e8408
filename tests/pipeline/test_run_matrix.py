"""Axes of a recipe become runs, a recipe extends another: what comes of it, written out here by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import recipe as recipes
from pipeline.errors import ConfigError

AXES = """
[runs.plain]
[matrix.student.m0]
set = { "student.name" = "micronet_m0" }
[matrix.student.narrow]
set = { "student.name" = "mobilevitv2_050", "student.width" = 0.35 }
seeds = [4]
[matrix.loss.angle]
set = { "loss.angle" = 2.0, "loss.feature" = 0.0 }
[matrix.loss.both]
set = { "loss.angle" = 1.0 }
"""


def loaded(folder: Path, text: str) -> recipes.Recipe:
    path = folder / "axes.toml"
    path.write_text(text)
    return recipes.load(path)


def test_every_choice_meets_every_other(tmp_path: Path) -> None:
    runs = recipes.expand(loaded(tmp_path, AXES))
    got = {
        run.label: (run.recipe.student.name, run.recipe.student.width, run.recipe.loss.angle, run.recipe.loss.feature)
        for run in runs
    }  # fmt: skip
    assert got == {
        "plain-seed0": ("cnn4", 1.0, 0.0, 1.0),
        "m0-angle-seed0": ("micronet_m0", 1.0, 2.0, 0.0),
        "m0-both-seed0": ("micronet_m0", 1.0, 1.0, 1.0),
        "narrow-angle-seed4": ("mobilevitv2_050", 0.35, 2.0, 0.0),
        "narrow-both-seed4": ("mobilevitv2_050", 0.35, 1.0, 1.0),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[matrix.a.x]\nset = { "loss.angle" = 1 }\n[matrix.b.y]\nset = { "loss.angle" = 2 }', "loss.angle"),
        ("[matrix.a.x]\nseeds = [1]\n[matrix.b.y]\nseeds = [2]", "seeds"),
        ("[runs.x]\n[matrix.a.x]", "x is a run already"),
        ("[matrix]\na = 3", "table of choices"),
        ('[matrix.a.x]\nset = { "student.nane" = "cnn4" }', "name"),
    ],
)
def test_what_cannot_be_crossed_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, text)


def test_a_recipe_lies_over_the_one_it_extends(tmp_path: Path) -> None:
    (tmp_path / "under.toml").write_text(
        'name = "under"\n[train]\nsteps = 7\nbatch_size = 3\n[evaluate]\ntasks = ["a"]\n[runs.one]\nseeds = [1, 2]'
    )
    (tmp_path / "middle.toml").write_text('extends = "under.toml"\n[runs.two]')
    recipe = loaded(tmp_path, 'extends = "middle.toml"\n[train]\nsteps = 9\n[evaluate]\ntasks = ["b", "c"]')
    assert (recipe.name, recipe.train.steps, recipe.train.batch_size) == ("axes", 9, 3)
    assert recipe.evaluate.tasks == ("b", "c")
    assert [run.label for run in recipes.expand(recipe)] == ["one-seed1", "one-seed2", "two-seed0"]


def test_null_leaves_a_table_out(tmp_path: Path) -> None:
    (tmp_path / "under.toml").write_text("[train]\nsteps = 7\n[runs.one]\n[runs.two]")
    recipe = loaded(tmp_path, 'extends = "under.toml"\nruns = "null"\ntrain = "null"')
    assert (recipe.train.steps, dict(recipe.runs)) == (2_000, {})


@pytest.mark.parametrize(
    ("text", "words"),
    [('extends = "axes.toml"', "circle"), ('extends = "dmeo"', "demo"), ("extends = 3", "names one recipe")],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, text)
