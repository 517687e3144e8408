"""One registry for everything that a recipe names: teachers, students, losses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Generic, TypeVar

from pipeline.errors import UnknownNameError, near_matches

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to builders, loaded lazily so that listing names imports no model code.

    Args:
        kind: what is registered, for messages ("student").
        lazy: name to ``"module:attribute"``; imported at first use.

    Example:
        >>> students = Registry("student", {"micronet_m0": "pipeline.students.micronet:micronet_m0"})
        >>> student = students.build("micronet_m0", embedding_dim=128)
    """

    def __init__(self, kind: str, lazy: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._lazy = dict(lazy or {})
        self._builders: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorate a builder to add it under ``name``."""

        def add(builder: Callable[..., T]) -> Callable[..., T]:
            self._builders[name] = builder
            return builder

        return add

    def names(self) -> list[str]:
        """Return every known name, sorted."""
        return sorted({*self._lazy, *self._builders})

    def get(self, name: str) -> Callable[..., T]:
        """Return the builder called ``name``; an unknown name lists near matches."""
        if name not in self._builders and name in self._lazy:
            module, attribute = self._lazy[name].split(":")
            self._builders[name] = getattr(importlib.import_module(module), attribute)
        if name not in self._builders:
            raise UnknownNameError(
                f"no {self.kind} is called {name!r}", expected=near_matches(name, self.names()), got=name
            )
        return self._builders[name]

    def build(self, name: str, /, *args: object, **options: object) -> T:
        """Build the entry called ``name``."""
        return self.get(name)(*args, **options)
