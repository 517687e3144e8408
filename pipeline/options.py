"""A family's own keys (``options`` of a teacher or a student), checked against its pydantic Section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.errors import ConfigError, near_matches
from pipeline.section import Section

Options = TypeVar("Options", bound=Section)


class NoOptions(Section):
    """A teacher or student without keys of its own."""


def parse_options(kind: type[Options], owner: str, given: Mapping[str, Any]) -> Options:
    """Return ``given`` as the options of ``owner``, which messages call so (``teacher 'beats'``).

    Raises:
        ConfigError: an unknown key (near matches are listed) or an impossible value.
    """
    for key in given:
        if key not in kind.model_fields and kind.model_config.get("extra") != "allow":
            known = near_matches(key, kind.model_fields) if kind.model_fields else "none: it has no options"
            raise ConfigError(f"{owner} has no option {key!r}", expected=known, got=key)
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "options"
        raise ConfigError(
            f"option {key!r} of {owner} is impossible", expected=first["msg"], got=first.get("input")
        ) from error
