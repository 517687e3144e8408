"""Recipes: a wrong key stops before any work and names near matches."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import recipe as recipes
from pipeline.config import Recipe, canonical_json, digest
from pipeline.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(recipes.SHIPPED.glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert recipes.expand(recipes.load(path))


def test_a_recipe_is_found_by_name_and_by_the_documented_path() -> None:
    assert recipes.find("demo") == recipes.find("recipes/demo.toml") == recipes.SHIPPED / "demo.toml"


def test_an_unknown_recipe_names_near_matches() -> None:
    with pytest.raises(ConfigError, match="no recipe 'dem'") as caught:
        recipes.load("dem")
    assert "demo" in str(caught.value)


def test_set_changes_one_key(tmp_path: Path) -> None:
    path = write(tmp_path, "[student]\nname = 'micronet_m1'\n")
    recipe = recipes.load(path, ["student.name=micronet_m0", "loss.angle=2", "train.clip_norm=null"])
    assert (recipe.student.name, recipe.loss.angle, recipe.train.clip_norm) == ("micronet_m0", 2.0, None)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[student]\nwidht = 2\n", "did you mean width"),
        ("[studnet]\nwidth = 2\n", "did you mean student"),
        ("[loss]\nangel = 2\n", "did you mean angle"),
        ("[embed.frontend]\nmel = 64\n", "mels"),
    ],
)
def test_an_unknown_key_names_near_matches(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        recipes.load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[embed.frontend]\nmax_hz = 9000.0\n", "above half of sample_rate_hz"),
        ("[embed.frontend]\nwindow_length = 1024\n", "longer than n_fft"),
        ("[loss]\nfeature = 0.0\n", "every loss weight is 0"),
        ("[embed]\nshard_rows = 100\n", "multiple of chunk_rows"),
        ("[train]\nsteps = -1\n", "greater than or equal to 0"),
        ("headline = 'x'\n[runs.a]\n", "headline names no run"),
        ("[student\n", "not valid TOML"),
        ("[runs.a]\nset = { 'loss.angel' = 1 }\n", "did you mean angle"),
    ],
)
def test_an_impossible_value_stops_before_any_work(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipes.load(write(tmp_path, text))


def test_set_refuses_what_is_no_assignment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        recipes.load(write(tmp_path, ""), ["student.name"])


def test_runs_expand_by_seed_with_their_changes(tmp_path: Path) -> None:
    text = "[runs.a]\nseeds = [1, 2]\n[runs.b]\nset = { 'train.control' = 'random' }\n"
    runs = recipes.expand(recipes.load(write(tmp_path, text)))
    assert [run.label for run in runs] == ["a-seed1", "a-seed2", "b-seed0"]
    assert [run.recipe.train.seed for run in runs] == [1, 2, 0]
    assert runs[2].recipe.train.control == "random"


def test_the_digest_depends_on_values_and_not_on_order() -> None:
    assert digest({"a": 1, "b": [2.5, None]}) == digest({"b": [2.5, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest(Recipe()) == digest(Recipe.model_validate(Recipe().model_dump(mode="json")))
    # SHA-256 of the two characters {} computed by sha256sum
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "csv"\npth = "a.csv"', "unknown key; did you mean path"),
        ('kind = "cvs"\npath = "a.csv"', "no such kind; did you mean csv"),
        ('path = "a.csv"', "an input without a kind; known: folder, csv"),
        ('kind = "fma"\nroot = "x"\nsubset = "smal"', "fma has no subset 'smal'"),
        ('kind = "dear"\nroot = "x"\nlists = "y"', "dear takes no lists"),
    ],
)
def test_a_wrong_input_is_told_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes.load(write(tmp_path, f"[[manifest.inputs]]\n{text}\n"))
