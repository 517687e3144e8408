"""Every value of a search space is tried on the recipe before any work."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from pipeline.config import Recipe
from pipeline.errors import ConfigError
from pipeline.search.space import Dimension, Space, applied
from pipeline.students.registry import check_student

STUDENT = "student.name"


def check(space: Space, base: Recipe, *, check_data: Callable[[str, Recipe], None], where: str) -> None:
    """Set every choice and every bound, one key at a time, on ``base``.

    What is impossible only together with other keys is left to the trial that draws it: another value of a key
    that varies too may make it possible.

    Args:
        space: parsed.
        base: the recipe with the space's fixed values.
        check_data: raises where the store lacks what a recipe asks for; called with key and changed recipe for
            keys of ``embed``, ``manifest`` and ``targets.teachers``.
        where: the file, for messages.

    Raises:
        ConfigError: nothing varies, or a value is impossible.
        OssicleError: of ``check_data``.
    """
    if not space.dimensions:
        raise ConfigError(
            f"{where}: nothing varies", expected="one key at least with low and high, or with choices",
            run="ossicle sweep RECIPE --set 'loss.angle={low=0, high=4}'",
        )  # fmt: skip
    for dimension in space.dimensions:
        for context in _contexts(dimension, space, base):
            for value in dimension.ends:
                recipe = _try(base, {**context, dimension.key: value}, dimension.key, where)
                if recipe is None:
                    continue
                check_student(recipe.student)
                if (
                    dimension.key.split(".")[0] in ("embed", "manifest")
                    or dimension.key == "targets.teachers"
                ):
                    check_data(dimension.key, recipe)


def _try(base: Recipe, values: dict[str, Any], key: str, where: str) -> Recipe | None:
    try:
        return applied(base, values)
    except ConfigError as error:
        cause = error.__cause__
        details = cause.errors() if isinstance(cause, ValidationError) else []
        located = [".".join(str(part) for part in detail["loc"]) for detail in details]
        if details and not any(place == key or place.startswith(f"{key}.") for place in located):
            return None
        raise ConfigError(
            f"{where}: {key!r} cannot be {values[key]!r}", expected=error.problem, got=values[key],
            run=error.run,
        ) from error  # fmt: skip


def _contexts(dimension: Dimension, space: Space, base: Recipe) -> Iterator[dict[str, Any]]:
    """Yield the values of other keys under which ``dimension`` exists: one of each, of students every one."""
    by_key = {one.key: one for one in space.dimensions}
    allowed: dict[str, tuple[Any, ...]] = {}
    waiting = list(dimension.when)
    while waiting:
        key, values = waiting.pop()
        allowed[key] = values if key == STUDENT else values[:1]
        waiting += by_key[key].when
    if dimension.key.startswith("student.options.") and STUDENT in by_key and STUDENT not in allowed:
        allowed[STUDENT] = by_key[STUDENT].choices
    for chosen in itertools.product(*allowed.values()):
        yield dict(zip(allowed, chosen, strict=True))
