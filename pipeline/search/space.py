"""A search space in TOML: which recipe keys vary, over what, and under which condition.

::

    "loss.angle"          = { low = 0, high = 4 }
    "train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }
    "train.batch_size"    = { low = 32, high = 256, step = 32 }
    "student.name"        = { choices = ["cnn4", "micronet_m0"] }
    "targets.components"  = { choices = [32, 64], null = true }
    "student.odd_size"    = { choices = ["pad", "resize"], when = { "student.name" = "mobilevitv2_050" } }
    "train.steps"         = 500                # a plain value is the same for every trial

Keys may also be written in sections (``[loss]``, ``angle = {...}``).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, near_matches
from pipeline.search import keys

WORDS = ("low", "high", "log", "step", "choices", "null", "when")
_SCALARS = (str, int, float, bool, type(None))


class Trial(Protocol):
    """The part of ``optuna.Trial`` that draws values."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Dimension:
    """One key that varies: between ``low`` and ``high`` (both included), or over ``choices``.

    ``when`` holds the keys and the values of theirs under which this one exists at all.
    """

    key: str
    kind: Literal["int", "float", "choice"]
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def ends(self) -> tuple[Any, ...]:
        """Every choice, or the two bounds."""
        return self.choices if self.kind == "choice" else (self.low, self.high)

    def values(self) -> tuple[Any, ...]:
        """Return every value of a dimension that has finitely many."""
        if self.kind == "choice":
            return self.choices
        step = self.step or (1 if self.kind == "int" else 1.0)
        return tuple(self.low + step * place for place in range(round((self.high - self.low) / step) + 1))

    def suggest(self, trial: Trial) -> Any:
        """Return the value that ``trial`` draws."""
        if self.kind == "int":
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=step, log=self.log)
        if self.kind == "float":
            return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        if all(isinstance(choice, _SCALARS) for choice in self.choices):
            return trial.suggest_categorical(self.key, list(self.choices))
        labels = [json.dumps(choice) for choice in self.choices]
        return self.choices[labels.index(trial.suggest_categorical(self.key, labels))]


@dataclass(frozen=True)
class Space:
    """The dimensions, conditions before what depends on them, and the keys that are the same for every trial."""

    dimensions: tuple[Dimension, ...]
    fixed: dict[str, Any] = field(default_factory=dict)

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Return the value of every key that exists in this trial."""
        found: dict[str, Any] = {}
        for dimension in self.dimensions:
            if all(key in found and found[key] in allowed for key, allowed in dimension.when):
                found[dimension.key] = dimension.suggest(trial)
        return found

    def combinations(self) -> int:
        """Return how many different trials there are.

        Raises:
            ConfigError: infinitely many, for a number between bounds has no step.
        """
        for dimension in self.dimensions:
            if dimension.kind == "float" and dimension.step is None and dimension.low < dimension.high:
                raise ConfigError(
                    f"a grid needs steps, and {dimension.key!r} has none", expected="step = ..., or choices",
                    got=f"low {dimension.low:g}, high {dimension.high:g}",
                )  # fmt: skip
        return _count(self.dimensions, {})

    def to_json(self) -> dict[str, Any]:
        """Return what the study's identity holds of it."""
        return {"dimensions": [asdict(dimension) for dimension in self.dimensions], "fixed": self.fixed}


def _count(dimensions: tuple[Dimension, ...], found: dict[str, Any]) -> int:
    if not dimensions:
        return 1
    first, rest = dimensions[0], dimensions[1:]
    if not all(key in found and found[key] in allowed for key, allowed in first.when):
        return _count(rest, found)
    if all(first.key not in dict(later.when) for later in rest):
        return len(first.values()) * _count(rest, found)
    return sum(_count(rest, {**found, first.key: value}) for value in first.values())


def applied(base: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return ``base`` with ``values`` set. Another student starts without the options and weights of the base's.

    Raises:
        ConfigError: the values are impossible together.
    """
    changes = dict(values)
    if changes.get("student.name", base.student.name) != base.student.name:
        changes = {"student.options": {}, "student.weights": None, "student.trust_sha256": None, **changes}
    return recipes.change(base, changes, "search space")


def read_table(path: Path) -> dict[str, Any]:
    """Return the table of a TOML file.

    Raises:
        ConfigError: there is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"no search space in {path}", expected="a TOML file", got=error.strerror) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def divided(overrides: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the ``--set`` of single values, and the table of those that are a dimension."""
    single, table = [], {}
    for override in overrides:
        key, _, text = override.partition("=")
        try:
            value = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = None
        if isinstance(value, dict) and {"low", "high", "choices"} & set(value):
            table[key.strip()] = value
        else:
            single.append(override)
    return single, table


def parse(table: Mapping[str, Any], where: str) -> Space:
    """Return the space that ``table`` describes; its values are not tried on a recipe yet.

    Args:
        table: as this module's docstring shows.
        where: the file, for messages.

    Raises:
        ConfigError: an unknown key or word (near matches are listed), or bounds that make no sense.
    """
    dimensions, fixed = [], {}
    for key, value, varies in _flat(table, ""):
        found = keys.find(key)
        if varies:
            dimensions.append(_dimension(found, value, where))
        else:
            fixed[key] = value
    return Space(tuple(_parents_first(dimensions, where)), fixed)


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, bool]]:
    for name, value in table.items():
        key = prefix + name
        if not isinstance(value, dict):
            yield key, value, False
        elif {"low", "high", "choices"} & set(value):
            yield key, value, True
        elif keys.find(key).takes_table and not set(WORDS) & set(value):
            yield key, value, False
        elif keys.find(key).is_table:
            yield from _flat(value, f"{key}.")
        else:
            raise ConfigError(
                f"{key!r}: neither low and high nor choices",
                expected="; ".join(near_matches(word, WORDS) for word in value)
                or "{ low = ..., high = ... }",
                got=", ".join(value) or "{}",
            )


def _dimension(key: keys.Key, words: Mapping[str, Any], where: str) -> Dimension:
    def wrong(problem: str, expected: object = None, got: object = None) -> ConfigError:
        return ConfigError(f"{where}: {key.name!r}: {problem}", expected=expected, got=got)

    for word in words:
        if word not in WORDS:
            raise wrong(f"no such word {word!r}", near_matches(word, WORDS), word)
    if key.is_table:
        raise wrong("a section does not vary, its keys do")
    when = _conditions(words.get("when", {}), wrong)
    if "choices" in words:
        choices = words["choices"]
        if {"low", "high", "log", "step"} & set(words) or not isinstance(choices, list) or not choices:
            raise wrong("choices are a list of values, without low, high, log or step", got=choices)
        choices = [*choices, None] if words.get("null") is True else choices
        return Dimension(key.name, "choice", choices=tuple(choices), when=when)
    low, high, step = words.get("low"), words.get("high"), words.get("step")
    for name, value in (("low", low), ("high", high), ("step", step)):
        missing = value is None and name != "step"
        if missing or isinstance(value, bool) or not isinstance(value, int | float | type(None)):
            raise wrong(f"{name} is no number", "low and high, or choices", value)
    assert low is not None
    assert high is not None
    if key.number is None or "null" in words:
        raise wrong("this key takes choices, not low and high", "choices = [...]", f"low {low}, high {high}")
    whole = all(isinstance(value, int) for value in (low, high, 1 if step is None else step))
    if key.number == "int" and not whole:
        raise wrong("this key takes whole numbers", got=f"low {low}, high {high}, step {step}")
    kind: Literal["int", "float"] = "int" if key.number != "float" and whole else "float"
    log = words.get("log", False)
    if not isinstance(log, bool):
        raise wrong("log is true or false", got=log)
    if low > high or (log and (low <= 0 or step is not None)) or (step is not None and step <= 0):
        raise wrong(
            "these bounds make no sense", "low <= high; log: low above 0 and no step; step above 0",
            f"low {low}, high {high}, log {log}, step {step}",
        )  # fmt: skip
    if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise wrong(
            "step does not divide the way from low to high", got=f"low {low}, high {high}, step {step}"
        )
    if kind == "float":
        low, high, step = float(low), float(high), None if step is None else float(step)
    return Dimension(key.name, kind, low, high, log, step, when=when)


def _conditions(table: Any, wrong: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(table, dict):
        raise wrong("when is a table of keys and values", 'when = { "student.name" = "cnn4" }', table)
    return tuple((key, tuple(value) if isinstance(value, list) else (value,)) for key, value in table.items())


def _parents_first(dimensions: list[Dimension], where: str) -> list[Dimension]:
    by_key = {dimension.key: dimension for dimension in dimensions}
    for dimension in dimensions:
        for parent, allowed in dimension.when:
            if parent not in by_key:
                raise ConfigError(
                    f"{where}: {dimension.key!r} depends on {parent!r}, which does not vary",
                    expected=near_matches(parent, by_key), got=parent,
                )  # fmt: skip
            choices = by_key[parent].choices
            for value in allowed:
                if choices and value not in choices:
                    raise ConfigError(
                        f"{where}: {dimension.key!r} depends on a value that {parent!r} never takes",
                        expected=near_matches(str(value), map(str, choices)), got=value,
                    )  # fmt: skip
    ordered: list[Dimension] = []
    while len(ordered) < len(dimensions):
        placed = {dimension.key for dimension in ordered}
        ready = [
            one for one in dimensions if one.key not in placed and all(key in placed for key, _ in one.when)
        ]
        if not ready:
            raise ConfigError(f"{where}: conditions go round in a circle", got=sorted(set(by_key) - placed))
        ordered += ready
    return ordered
