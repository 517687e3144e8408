"""A recipe as a TOML file that loads: what differs from the defaults, nothing else."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def recipe_text(recipe: Recipe, comments: tuple[str, ...] = ()) -> str:
    """Return ``recipe`` as TOML, ``comments`` above it.

    What is nothing where its default is something is written as ``"null"``.

    Raises:
        ConfigError: it does not read back as the same recipe.
    """
    table = _changed(recipe.model_dump(mode="json"), Recipe().model_dump(mode="json"))
    lines = [f"# {line}" for line in comments]
    lines += _section({"name": recipe.name, **table}, ())
    text = "\n".join(lines).strip() + "\n"
    if recipes.parse(tomllib.loads(text), recipe.name) != recipe:
        raise ConfigError("the recipe cannot be written as TOML: what is read back differs", got=text)
    return text


def inline(table: dict[str, Any], default: dict[str, Any]) -> str:
    """Return what differs from ``default`` as an inline table, ``{ mels = 40 }``."""
    return _value(_changed(table, default))


def _changed(table: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in default:
            found[key] = value
        elif isinstance(value, dict) and isinstance(default[key], dict):
            inner = _changed(value, default[key])
            found |= {key: inner} if inner else {}
        elif value != default[key]:
            found[key] = value
    return found


def _section(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    values = {key: value for key, value in table.items() if not isinstance(value, dict)}
    sections = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines = []
    if path and (values or not sections):
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in values.items()]
    for key, value in sections.items():
        lines += _section(value, (*path, key))
    return lines


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    if value is None:
        return '"null"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return "{ " + inner + " }" if inner else "{}"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
