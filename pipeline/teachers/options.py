"""A teacher's own keys (``embed.teacher.options``), checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.config import Section
from pipeline.errors import ConfigError, near_matches

Options = TypeVar("Options", bound=Section)


class NoOptions(Section):
    """A teacher without keys of its own."""


def parse(kind: type[Options], name: str, given: Mapping[str, Any]) -> Options:
    """Return ``given`` as the options of teacher ``name``.

    Raises:
        ConfigError: an unknown key (near matches are listed) or an impossible value.
    """
    for key in given:
        if key not in kind.model_fields:
            known = near_matches(key, kind.model_fields) if kind.model_fields else "none: it has no options"
            raise ConfigError(f"teacher {name!r} has no option {key!r}", expected=known, got=key)
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "options"
        raise ConfigError(
            f"option {key!r} of teacher {name!r} is impossible",
            expected=first["msg"],
            got=first.get("input"),
        ) from error
