"""A teacher's own keys (``embed.teacher.options``), checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.options import NoOptions as NoOptions
from pipeline.options import Options, parse_options


def parse(kind: type[Options], name: str, given: Mapping[str, Any]) -> Options:
    """Return ``given`` as the options of teacher ``name``.

    Raises:
        ConfigError: an unknown key (near matches are listed) or an impossible value.
    """
    return parse_options(kind, f"teacher {name!r}", given)
