"""A search space is read, refused and drawn from as it says."""

from __future__ import annotations

import random
import tomllib
from typing import Any

import pytest

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError
from pipeline.search import keys, space_check, toml_text
from pipeline.search.space import applied, divided, parse, read_table


class Dice:
    """What Optuna's trial draws with, for the tests."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._random.randrange(low, high + 1, step)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._random.uniform(low, high)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._random.choice(choices)


EXAMPLE = """
"loss.angle" = { low = 0, high = 4 }
"train.batch_size" = { low = 32, high = 256, step = 32 }
"train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }
"targets.components" = { choices = [32, 64], null = true }
"train.steps" = 500
[student]
name = { choices = ["cnn4", "mobilevitv2_050", "micronet_m0"] }
odd_size = { choices = ["pad", "resize"], when = { "student.name" = "mobilevitv2_050" } }
width = { low = 0.5, high = 1, step = 0.25, when = { "student.name" = ["cnn4", "micronet_m0"] } }
"""


def test_every_draw_obeys_bounds_types_and_conditions() -> None:
    space = parse(tomllib.loads(EXAMPLE), "x.toml")
    assert space.fixed == {"train.steps": 500}
    seen: dict[str, set[Any]] = {}
    for seed in range(200):
        drawn = space.suggest(Dice(seed))
        recipe = applied(recipes.change(Recipe(), space.fixed), drawn)
        assert recipe.train.steps == 500
        assert isinstance(drawn["loss.angle"], float)
        assert 0 <= drawn["loss.angle"] <= 4
        assert drawn["train.batch_size"] in range(32, 257, 32)
        assert ("student.odd_size" in drawn) == (drawn["student.name"] == "mobilevitv2_050")
        assert ("student.width" in drawn) == (drawn["student.name"] != "mobilevitv2_050")
        for key, value in drawn.items():
            seen.setdefault(key, set()).add(value)
    assert seen["targets.components"] == {32, 64, None}
    assert seen["student.odd_size"] == {"pad", "resize"}


def test_a_grid_counts_what_its_conditions_leave() -> None:
    table = tomllib.loads("""
        "train.batch_size" = { low = 8, high = 32, step = 8 }
        "student.name" = { choices = ["cnn4", "mobilevitv2_050", "micronet_m0"] }
        "student.odd_size" = { choices = ["pad", "resize"], when = { "student.name" = "mobilevitv2_050" } }
    """)
    assert parse(table, "x").combinations() == 4 * (1 + 2 + 1)
    with pytest.raises(ConfigError, match="needs steps"):
        parse({"loss.angle": {"low": 0, "high": 1}}, "x").combinations()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"loss.angel": {"low": 0, "high": 1}}, "did you mean loss.angle"),
        ({"student": {"nmae": {"choices": ["cnn4"]}}}, "did you mean student.name"),
        ({"loss.angle": {"low": 0, "hihg": 1}}, "did you mean high"),
        ({"train.learning_rate": {"lwo": 0, "hihg": 1}}, "did you mean low"),
        ({"loss.angle": {"low": 2, "high": 1}}, "no sense"),
        ({"loss.angle": {"low": 0, "high": 1, "log": True}}, "no sense"),
        ({"loss.angle": {"low": 0, "high": 1, "step": 0.3}}, "does not divide"),
        ({"train.batch_size": {"low": 8.5, "high": 16}}, "whole numbers"),
        ({"train.amp": {"low": 0, "high": 1}}, "takes choices"),
        ({"student.name": {"choices": []}}, "list of values"),
        ({"benchmark.arm": {"choices": [True]}}, "no run depends on it"),
        ({"paths.artifacts": {"choices": ["a"]}}, "no run depends on it"),
        ({"loss": {"low": 0, "high": 1}}, "a section does not vary"),
        ({"student.width": {"choices": [1], "when": {"student.nam": "cnn4"}}, "student.name": {"choices": ["cnn4"]}},
         "did you mean student.name"),
        ({"student.width": {"choices": [1], "when": {"student.name": "cnn5"}}, "student.name": {"choices": ["cnn4"]}},
         "did you mean cnn4"),
        ({"student.width": {"choices": [1], "when": {"student.odd_size": "pad"}},
          "student.odd_size": {"choices": ["pad"], "when": {"student.width": 1}}}, "circle"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_is_refused_with_near_matches(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(table, "x.toml")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"student.name": {"choices": ["cnn4", "micronet_m9"]}}, "did you mean micronet"),
        ({"student.width": {"low": -1, "high": 1}}, "greater than 0"),
        ({"train.batch_size": {"choices": [16, "many"]}}, "integer"),
        ({"student.name": {"choices": ["cnn4", "eres2net"]}, "student.options.blocks": {"choices": [[1, 1, 1, 1, 1]]}},
         "has no option 'blocks'"),
        ({"train.steps": 5}, "nothing varies"),
    ],
)  # fmt: skip
def test_every_value_is_tried_before_any_work(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_check.check(parse(table, "x"), Recipe(), check_data=lambda key, recipe: None, where="x")
    assert words in str(caught.value)


def test_values_impossible_only_alone_are_left_to_the_trial() -> None:
    # A weight of 0 with every other 0 is impossible, but another one varies too.
    base = recipes.change(Recipe(), {"loss.feature": 1.0})
    table = {"loss.feature": {"low": 0, "high": 1}, "loss.angle": {"low": 0, "high": 4}}
    space_check.check(parse(table, "x"), base, check_data=lambda key, recipe: None, where="x")
    with pytest.raises(ConfigError):
        applied(base, {"loss.feature": 0.0, "loss.angle": 0.0})


def test_data_is_asked_about_only_where_a_key_needs_it() -> None:
    asked: list[tuple[str, int]] = []
    table = {"embed.frontend.mels": {"choices": [40, 64]}, "train.batch_size": {"low": 8, "high": 16}}
    space_check.check(
        parse(table, "x"), Recipe(), where="x",
        check_data=lambda key, recipe: asked.append((key, recipe.embed.frontend.mels)),
    )  # fmt: skip
    assert asked == [("embed.frontend.mels", 40), ("embed.frontend.mels", 64)]


def test_another_student_leaves_the_options_of_the_recipes_own_behind() -> None:
    base = recipes.change(
        Recipe(), {"student.name": "eres2net", "student.options": {"blocks": [1, 1, 1, 1, 1]}}
    )
    assert applied(base, {"student.name": "cnn4"}).student.options == {}
    assert applied(base, {"student.width": 0.5}).student.options == {"blocks": [1, 1, 1, 1, 1]}


def test_every_key_that_is_known_is_found_and_none_is_irrelevant() -> None:
    names = keys.known()
    assert {"loss.angle", "train.learning_rate", "student.name", "embed.frontend.mels"} <= set(names)
    assert not [name for name in names if name.startswith(("paths.", "benchmark.", "sweep.", "search."))]
    assert all(keys.find(name).name == name for name in names)


def test_set_is_a_value_or_a_dimension() -> None:
    single, table = divided([
        "train.steps=5", "loss.angle={low=0, high=4}", 'student.name={choices=["cnn4"]}',
        "manifest.caps={speech=3}", "student.name=cnn4",
    ])  # fmt: skip
    assert single == ["train.steps=5", "manifest.caps={speech=3}", "student.name=cnn4"]
    assert table == {"loss.angle": {"low": 0, "high": 4}, "student.name": {"choices": ["cnn4"]}}


def test_a_space_file_that_is_not_there_or_no_toml_is_one_line(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="no search space"):
        read_table(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("x = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_table(tmp_path / "bad.toml")


@pytest.mark.parametrize("name", sorted(path.stem for path in recipes.SHIPPED.glob("*.toml")))
def test_every_shipped_recipe_survives_being_written(name: str, tmp_path: Any) -> None:
    recipe = recipes.change(
        recipes.load(name), {"targets.components": None, "student.options": {'odd "key"': [1, {"a": "b\n"}]}}
    )
    path = tmp_path / "written.toml"
    path.write_text(toml_text.recipe_text(recipe, ("first", "second")), encoding="utf-8")
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    assert recipes.parse(table, "written") == recipe
    assert "name" in table
