"""Recipe keys as a search space names them: what type they take, and which of them change a run."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from pipeline.config import Recipe
from pipeline.errors import ConfigError, near_matches

# No run's weights depend on these, so that trials would differ in nothing.
IRRELEVANT = (
    "name", "paths", "fetch", "export", "evaluate", "benchmark", "finetune", "selection", "sweep", "search", "runs",
    "matrix", "headline", "jobs", "train.device", "train.threads", "train.tensorboard",
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: dotted.
        number: what it takes as a number; None = no number; ``any`` = a key of a free table (``student.options``).
        is_table: a section, or a free table itself, which holds keys and is none.
        takes_table: besides other values it takes a table, as a loss weight takes a schedule.
    """

    name: str
    number: Literal["int", "float", "any"] | None
    is_table: bool = False
    takes_table: bool = False


def find(name: str) -> Key:
    """Return the key called ``name``.

    Raises:
        ConfigError: a recipe has no such key (near matches are listed), or no run depends on it.
    """
    found = _walk(name)
    if found is None:
        raise ConfigError(
            f"a recipe has no key {name!r}", expected=near_matches(name, known()), got=name,
            run="ossicle recipe --keys lists every key",
        )  # fmt: skip
    if any(name == other or name.startswith(f"{other}.") for other in IRRELEVANT):
        raise ConfigError(
            f"{name!r} cannot be searched: no run depends on it", expected="a key that changes what is trained",
            got=name,
        )  # fmt: skip
    return found


def known() -> list[str]:
    """Return every key that may be searched."""
    return [
        name
        for name in _names(Recipe, "")
        if not any(name == other or name.startswith(f"{other}.") for other in IRRELEVANT)
    ]


def _names(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = _model(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from _names(inner, f"{prefix}{name}.")


def _walk(name: str) -> Key | None:
    model: type[BaseModel] = Recipe
    parts = name.split(".")
    for position, part in enumerate(parts):
        field = model.model_fields.get(part)
        if field is None:
            return None
        inner = _model(field.annotation)
        last = position == len(parts) - 1
        if inner is not None:
            model = inner
            if last:
                return Key(name, None, is_table=True)
            continue
        kinds = _types(field.annotation)
        if any(typing.get_origin(kind) is dict for kind in kinds):
            return Key(name, None, is_table=True) if last else Key(name, "any")
        if not last:
            return None
        tables = any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)
        number: Literal["int", "float"] | None = (
            "float" if float in kinds else "int" if int in kinds else None
        )
        return Key(name, number, takes_table=tables)
    return None


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field is; a field that takes plain values too is none."""
    kinds = [kind for kind in _types(annotation) if kind is not type(None)]
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return found[0] if found and len(found) == len(kinds) else None


def _types(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _types(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _types(part)]
    return [annotation]
