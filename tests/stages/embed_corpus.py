"""A small synthetic corpus with a finished manifest, and a recipe that embeds it with the tiny teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.audio import synthesis
from pipeline.config import Recipe
from pipeline.manifest import content_digest, validate
from stages import locations

SMALL: dict[str, Any] = {
    "name": "small",
    "embed.teacher.name": "tiny",
    "embed.teacher.batch_size": 8,
    "embed.views.mixes": 24,
    "embed.views.textures": 8,
    "embed.shard_rows": 16,
    "embed.chunk_rows": 8,
    "embed.workers": 1,
}


def small_recipe(folder: Path, **changes: Any) -> Recipe:
    """Return the recipe; ``embed__workers=1`` changes ``embed.workers``."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    paths = {"paths.artifacts": folder / "artifacts", "fetch.audio_folder": folder / "audio"}
    return recipes.change(Recipe(), {**SMALL, **paths, **dotted})


def write_corpus(folder: Path, clips: int = 24) -> pd.DataFrame:
    """Write synthetic clips into ``folder/audio`` and return their manifest rows, each sound once."""
    return synthesis.write_clips(folder / "audio", clips).drop_duplicates("clip_id", ignore_index=True)


def finish_manifest(recipe: Recipe, clips: pd.DataFrame, audio: Path) -> Path:
    """Write the manifest artifact that ``recipe`` looks for."""
    folder = locations.manifest_folder(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    validate(clips, {"synthetic": audio})
    clips.to_parquet(folder / "clips.parquet", index=False)
    artifact.write_json(folder / "roots.json", {"synthetic": str(audio)})
    artifact.finish(
        folder,
        kind="manifest",
        config=locations.manifest_config(recipe),
        inputs={"files": "0"},
        summary={"content": content_digest(clips)},
    )
    return folder


def prepared(folder: Path, clips: int = 24, **changes: Any) -> Recipe:
    """Return a recipe whose manifest is finished and whose store is not begun."""
    recipe = small_recipe(folder, **changes)
    finish_manifest(recipe, write_corpus(folder, clips), folder / "audio")
    return recipe


def store_content(folder: Path) -> dict[str, bytes]:
    """Return every file of a finished store that must be equal between two runs: arrays and tables."""
    kept = [
        p for p in folder.rglob("*") if p.is_file() and not p.relative_to(folder).parts[0].startswith(".")
    ]
    names = {p.relative_to(folder).as_posix(): p for p in kept}
    return {name: path.read_bytes() for name, path in sorted(names.items()) if name != artifact.MARKER}


def recipe_file(recipe: Recipe, path: Path) -> Path:
    """Write ``recipe`` where another process can read it back with ``Recipe.model_validate_json``."""
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    return path
