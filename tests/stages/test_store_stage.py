"""``ossicle store`` on a store of real stage-1 parts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, DigestMismatchError
from pipeline.store.reader import StoreReader
from stages import locations, store
from tests.fixtures import regenerate


def said() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200, highlight=False), text


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("stage")
    embed = regenerate.STORES["views_uint8"]
    made = Recipe(name="fixture", paths={"artifacts": folder / "artifacts"}, embed=embed)  # type: ignore[arg-type]
    manifest = regenerate.write_manifest(folder / "audio", locations.manifest_folder(made))
    regenerate.write_store(locations.store_folder(made), embed, manifest)
    return made


def test_inspect_tells_what_is_there(recipe: Recipe) -> None:
    console, text = said()
    assert store.inspect(locations.store_folder(recipe), console=console)
    for part in ("27 rows in 4 shards", "tiny", "uint8", "complete", "mix 6", "silent", "CC0-1.0"):
        assert part in text.getvalue()


def test_audit_agrees_with_stage_1(recipe: Recipe) -> None:
    console, text = said()
    assert store.audit(locations.store_folder(recipe), console=console, recipe=recipe, sample=12)
    assert text.getvalue().count("yes") == 2


def test_audit_finds_other_sound(recipe: Recipe) -> None:
    """The same plan rendered with another view configuration is other sound, and the audit says so."""
    other = recipes.change(recipe, {"embed.views.level_dbfs": (-12.0, -10.0)})
    console, text = said()
    folder = locations.store_folder(recipe)
    assert not store.audit(folder, console=console, recipe=other, sample=25)
    assert "no: " in text.getvalue()
    named = {int(part.split(",")[0]) for part in text.getvalue().split(": row ")[1:]}
    views = StoreReader(folder).rows["view"]
    # A clean window is not rendered by level; every mix and texture is other sound.
    assert named and {views[row] for row in named} <= {"mix", "texture"}


def test_audit_refuses_another_teacher_and_no_recipe(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.teachers.synthetic import TinyTeacher

    console, _ = said()
    folder = locations.store_folder(recipe)
    with pytest.raises(ConfigError, match="needs the recipe"):
        store.audit(folder, console=console)
    monkeypatch.setattr(TinyTeacher, "digest", lambda self: "9" * 64)
    with pytest.raises(DigestMismatchError) as caught:
        store.audit(folder, console=console, recipe=recipe)
    assert "9" * 64 in str(caught.value)


def test_verify_and_repair(recipe: Recipe) -> None:
    console, text = said()
    folder = locations.store_folder(recipe)
    assert store.verify(folder, console=console, recipe=recipe)
    shard = next(folder.glob("embedding/*.zarr/embedding/c/1/0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert not store.verify(folder, console=console)
    assert "truncated_shard" in text.getvalue()
    assert "--repair" in text.getvalue()
    assert not store.verify(folder, console=console, repair=True)
    assert "discarded 1 shards" in text.getvalue()
    assert not shard.exists()
