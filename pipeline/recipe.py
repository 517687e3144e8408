"""Read a recipe: find the file, apply ``--set``, expand its runs. Every error comes before any work."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.config import ManifestConfig, Recipe
from pipeline.errors import ConfigError, near_matches
from pipeline.input_config import MODEL_OF_KIND

# Pydantic's names of types, as TOML has them.
KINDS = {
    "model_type": "a table: {key = value}", "dict_type": "a table: {key = value}",
    "tuple_type": "a list: [value, value]",
}  # fmt: skip
_TOP = Path(__file__).resolve().parent.parent
SHIPPED = _TOP / "stages" / "recipes"
# In a wheel the data manifests travel inside the stages package; in a checkout they are at the top.
DATA_MANIFESTS = (
    _TOP / "data_manifests" if (_TOP / "data_manifests").is_dir() else _TOP / "stages" / "data_manifests"
)


@dataclass(frozen=True)
class Run:
    """One training run of a recipe: its name, its seed and the recipe with its changes applied."""

    name: str
    seed: int
    recipe: Recipe

    @property
    def label(self) -> str:
        """``name-seedN``: how artifacts and tables call the run."""
        return f"{self.name}-seed{self.seed}"


def find(reference: str | Path) -> Path:
    """Return the file that ``reference`` names: a path, ``recipes/demo.toml`` or ``demo`` of those shipped.

    Raises:
        ConfigError: no such recipe; near matches are listed.
    """
    path = Path(reference)
    for candidate in (path, SHIPPED / path.name, SHIPPED / f"{path.name}.toml"):
        if candidate.is_file():
            return candidate
    shipped = [p.stem for p in SHIPPED.glob("*.toml")]
    raise ConfigError(
        f"no recipe {str(reference)!r}", expected=near_matches(path.stem, shipped), got=str(reference)
    )


def load(reference: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Return the validated recipe with ``overrides`` (``student.name=micronet_m0``) applied.

    Raises:
        ConfigError: unreadable TOML, an unknown key (near matches named) or an impossible value.
    """
    path = find(reference)
    table = _read(path, ())
    table.setdefault("name", path.stem)
    recipe = parse(_overridden(table, overrides), str(path))
    expand(recipe)
    return recipe


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the table of a recipe's file over that of the recipe it ``extends``."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends names one recipe", expected='extends = "demo"', got=base)
    beside = path.parent / base
    found = beside if beside.is_file() else find(base)
    if found.resolve() in (*above, path.resolve()):
        raise ConfigError(f"{path}: recipes extend each other in a circle", got=base)
    under = _read(found, (*above, path.resolve()))
    under.pop("name", None)
    return _laid_over(under, table)


def _laid_over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return both tables as one: tables are joined key by key, all else of ``over`` replaces what was there.

    The text ``null`` in the place of a table leaves it out.
    """
    joined = dict(under)
    for key, value in over.items():
        below = joined.get(key)
        if value == "null" and isinstance(below, dict):
            del joined[key]
            continue
        joined[key] = (
            _laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        )
    return joined


def parse(table: dict[str, Any], where: str) -> Recipe:
    """Return the validated recipe of a TOML table; the text ``null`` stands for nothing, which TOML cannot say.

    Args:
        table: what ``tomllib`` read.
        where: the file, for messages.

    Raises:
        ConfigError: an unknown key (near matches named) or an impossible value.
    """
    return _validate(_without_nulls(table), where)


def overridden(overrides: Iterable[str]) -> Recipe:
    """Return the recipe of defaults with ``overrides`` applied, for commands that need no recipe of their own.

    Raises:
        ConfigError: an unknown key (near matches named) or an impossible value.
    """
    return _validate(_overridden({}, overrides), "--set")


def _overridden(table: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError("--set wants key=value", got=override, run="--set student.name=micronet_m0")
        _assign(table, key.strip(), _parse(text.strip(), key.strip()))
    return table


def change(recipe: Recipe, changes: dict[str, Any], where: str = "set") -> Recipe:
    """Return ``recipe`` with dotted keys changed, validated anew."""
    table = recipe.model_dump(mode="python")
    for key, value in changes.items():
        _assign(table, key, value)
    return _validate(table, where)


def expand(recipe: Recipe) -> list[Run]:
    """Return every training run of ``recipe``, in order; one named after the student if it lists none."""
    if not recipe.runs:
        return [Run(recipe.student.name, recipe.train.seed, recipe)]
    runs = []
    for name, run in recipe.runs.items():
        for seed in run.seeds:
            changed = change(recipe, {**run.set, "train.seed": seed}, f"[runs.{name}]")
            runs.append(Run(name, seed, changed))
    if recipe.headline is not None and recipe.headline not in recipe.runs:
        raise ConfigError(
            f"headline names no run: {recipe.headline!r}", expected=near_matches(recipe.headline, recipe.runs)
        )
    return runs


def _parse(text: str, key: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # none is a choice of some keys (targets.head) and no value of others (train.clip_norm).
        return None if text == "null" or (text == "none" and "none" not in _choices(key)) else text


def _choices(key: str) -> tuple[Any, ...]:
    """Return the closed list of values that ``key`` takes, or nothing where it takes others too."""
    *parents, leaf = key.split(".")
    model: type[BaseModel] = Recipe
    for part in parents:
        field = model.model_fields.get(part)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return ()
        model = field.annotation
    field = model.model_fields.get(leaf)
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items()}
    return None if isinstance(value, str) and value == "null" else value


def _assign(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{key!r}: {parent!r} holds a value, not a section")
    table[leaf] = value


def _validate(table: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        lines = _told(error)
        raise ConfigError(
            f"{where}: " + "; ".join(lines), run="ossicle recipe --keys lists every key"
        ) from error


def _told(error: ValidationError) -> list[str]:
    """Return what is wrong with each key, once a key, without pydantic's names of a union's members."""
    told: dict[str, list[str]] = {}
    for detail in error.errors():
        location = tuple(part for part in detail["loc"] if not _names_a_member(part))
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"unknown key; {near_matches(str(location[-1]), _keys(location[:-1]))}"
        elif detail["type"] == "union_tag_invalid":
            message = f"no such kind; {near_matches(detail['ctx']['tag'], MODEL_OF_KIND)}"
        elif detail["type"] == "union_tag_not_found":
            message = f"an input without a kind; known: {', '.join(MODEL_OF_KIND)}"
        elif detail["type"] in KINDS:
            message = f"Input should be {KINDS[detail['type']]}"
        elif detail["type"] == "string_pattern_mismatch":
            message = f"Input should look like {detail['ctx']['pattern']}"
        told.setdefault(".".join(map(str, location)), []).append(message)
    return [f"{key or 'recipe'}: {'; or: '.join(messages)}" for key, messages in told.items()]


def _names_a_member(part: int | str) -> bool:
    """Whether ``part`` of an error's place names a member of a union, not a key."""
    return isinstance(part, str) and (
        part in ("float", "int", "str", "bool")
        or not re.fullmatch(r"[\w /.:-]*", part)
        or part.startswith("constrained-")
    )


def _keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        if model is ManifestConfig and (part == "inputs" or isinstance(part, int)):
            continue
        if model is ManifestConfig and part in MODEL_OF_KIND:
            model = MODEL_OF_KIND[str(part)]
            continue
        field = model.model_fields.get(str(part))
        kind = field.annotation if field is not None else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model = kind
    return list(model.model_fields)
