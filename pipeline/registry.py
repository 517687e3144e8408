"""One registry for everything that a recipe names: teachers, students, losses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pipeline.errors import ConfigError, UnknownNameError, near_matches

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to builders, loaded lazily so that listing names imports no model code.

    Args:
        kind: what is registered, for messages ("student").
        lazy: name to ``"module:attribute"``; imported at first use.
        group: entry points of other distributions that stand beside ours; a name of ours is never taken by one.
        adopt: ``"module:attribute"`` of what turns an entry point into a builder.

    Example:
        >>> students = Registry("student", {"micronet_m0": "pipeline.students.micronet:micronet_m0"})
        >>> student = students.build("micronet_m0", embedding_dim=128)
    """

    def __init__(
        self, kind: str, lazy: dict[str, str] | None = None, *, group: str | None = None, adopt: str = ""
    ) -> None:
        self.kind, self.group, self._adopt = kind, group, adopt
        self._lazy = dict(lazy or {})
        self._builders: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorate a builder to add it under ``name``."""

        def add(builder: Callable[..., T]) -> Callable[..., T]:
            self._builders[name] = builder
            return builder

        return add

    def own_names(self) -> list[str]:
        """Return the names of ours, sorted."""
        return sorted({*self._lazy, *self._builders})

    def entry_points(self) -> dict[str, EntryPoint]:
        """Return the installed entry points by name; of two with one name, the first distribution's."""
        if self.group is None:
            return {}
        return {entry.name: entry for entry in reversed(tuple(entry_points(group=self.group)))}

    def names(self) -> list[str]:
        """Return every known name, sorted."""
        return sorted({*self.own_names(), *self.entry_points()})

    def get(self, name: str) -> Callable[..., T]:
        """Return the builder called ``name``; an unknown name lists near matches."""
        if name not in self._builders and name in self._lazy:
            self._builders[name] = _imported(self._lazy[name])
        if name not in self._builders:
            found = self.entry_points()
            if name in found:
                builder: Callable[..., T] = _imported(self._adopt)(found[name])
                return builder
            raise UnknownNameError(
                f"no {self.kind} is called {name!r}", expected=near_matches(name, self.names()), got=name
            )
        return self._builders[name]

    def build(self, name: str, /, *args: object, **options: object) -> T:
        """Build the entry called ``name``."""
        return self.get(name)(*args, **options)


def _imported(reference: str) -> Any:
    module, attribute = reference.split(":")
    return getattr(importlib.import_module(module), attribute)


def loaded(entry: EntryPoint, kind: str, expected: str) -> tuple[Callable[..., Any], str]:
    """Import what an entry point names and return it, with where it is from, for messages.

    Args:
        entry: of another distribution.
        kind: what it should build, for messages ("student").
        expected: what it may be, for messages.

    Raises:
        ConfigError: it cannot be imported, or cannot be called.
    """
    source = f"{entry.value} of {entry.dist.name if entry.dist else 'an unknown distribution'}"
    try:
        target: Any = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the entry point of {kind} {entry.name!r} cannot be imported", expected=source, got=str(error)
        ) from error
    if not callable(target):
        raise ConfigError(
            f"the entry point of {kind} {entry.name!r} is no builder",
            expected=expected,
            got=type(target).__name__,
        )
    return target, source
