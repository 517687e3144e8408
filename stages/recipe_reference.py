"""``ossicle recipe``: a recipe as the stages see it, the shipped ones, and every key that a recipe may hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline import recipe as recipes
from pipeline.config import ManifestConfig, Recipe
from pipeline.input_config import MODELS, InputBase, kinds_of


def resolved(reference: str, overrides: Sequence[str]) -> str:
    """Return the recipe with its defaults filled in, as dotted ``key = value`` lines that ``--set`` takes."""
    recipe = recipes.load(reference, overrides)
    return "\n".join(f"{key} = {value}" for key, value in _flat(recipe.model_dump(mode="json")))


def shipped() -> str:
    """Return every shipped recipe, one a line: its name and the first sentence of the comment that it opens with."""
    found = {
        path.stem: _first_sentence(path.read_text(encoding="utf-8"))
        for path in recipes.SHIPPED.glob("*.toml")
    }
    width = max(map(len, found))
    return "\n".join(f"{name:<{width}}  {sentence}" for name, sentence in sorted(found.items()))


def _first_sentence(toml: str) -> str:
    opening = takewhile(lambda line: line.startswith("#"), toml.splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in opening)
    # A full stop within a name (et al., 2.0, M0-M3) is followed by no capital.
    return re.split(r"(?<=[.?!])\s+(?=[A-Z])|\s+(?=ossicle |make )", text, maxsplit=1)[0]


def keys() -> str:
    """Return every key, its default and what it means, one a line, as ``docs/recipe.md`` prints them."""
    return "\n".join(
        f"{key} = {default}  # {text}" if text else f"{key} = {default}" for key, default, text in rows()
    )


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, default, meaning) of every key of a recipe."""
    yield from _rows(Recipe, "")


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _rows(kind, f"{prefix}{name}.")
            continue
        if model is ManifestConfig and name == "inputs":
            yield f"{prefix}{name}", "[]", field.description or ""
            yield from _input_rows(f"{prefix}{name}")
            continue
        default = "" if field.default is PydanticUndefined else _toml(field.default)
        yield f"{prefix}{name}", default, field.description or ""


def _input_rows(prefix: str) -> Iterator[tuple[str, str, str]]:
    """Yield the keys of every kind of input: those that all share first, then each kind's own."""
    shared = set(InputBase.model_fields)
    every = " ".join(kind for model in MODELS for kind in kinds_of(model))
    yield f"{prefix}[].kind", "", f"one of {every}"
    yield from _rows(InputBase, f"{prefix}[].")
    for model in MODELS:
        kinds = kinds_of(model)
        name = "|".join(kinds) if len(kinds) < 3 else f"{kinds[0]}|...|{kinds[-1]}"
        for key, default, text in _rows(model, ""):
            if key not in shared and key != "kind":
                yield f"{prefix}[{name}].{key}", default, text


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _toml(value)


def _toml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return repr(value) if isinstance(value, int | float) else f'"{value}"'
