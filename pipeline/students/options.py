"""A student's own keys (``student.options``), checked before any work.

A family declares its keys as a pydantic :class:`Section` beside its network and marks its builders with
``@takes(ItsOptions)``; the builder reads them with ``parse(ItsOptions, config)``. A builder that is not marked
takes none, and :func:`pipeline.students.registry.build_student` refuses any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.options import NoOptions as NoOptions
from pipeline.options import Options, parse_options
from pipeline.section import Section

if TYPE_CHECKING:
    from pipeline.config import LogMelConfig, StudentConfig

Builder = TypeVar("Builder", bound=Callable[..., Any])


def takes(kind: type[Section]) -> Callable[[Builder], Builder]:
    """Mark a builder with the class of its options."""

    def mark(builder: Builder) -> Builder:
        builder.options = kind  # type: ignore[attr-defined]
        return builder

    return mark


def hears(check: Callable[[StudentConfig, LogMelConfig], None]) -> Callable[[Builder], Builder]:
    """Mark a builder with what raises ConfigError where its network cannot hear a frontend."""

    def mark(builder: Builder) -> Builder:
        builder.check_frontend = check  # type: ignore[attr-defined]
        return builder

    return mark


def check_frontend(builder: Callable[..., Any], config: StudentConfig, frontend: LogMelConfig) -> None:
    """Raise ConfigError where the student that ``config`` names cannot hear ``frontend``; most hear any."""
    check: Callable[[StudentConfig, LogMelConfig], None] | None = getattr(builder, "check_frontend", None)
    if check is not None:
        check(config, frontend)


def kind_of(builder: Callable[..., Any]) -> type[Section]:
    """Return the class of a builder's options; :class:`NoOptions` where it takes none."""
    kind: type[Section] = getattr(builder, "options", NoOptions)
    return kind


def parse(kind: type[Options], config: StudentConfig) -> Options:
    """Return ``config.options`` as the options of the student that ``config`` names.

    Raises:
        ConfigError: an unknown key (near matches are listed) or an impossible value.
    """
    return parse_options(kind, f"student {config.name!r}", config.options)


def check(builder: Callable[..., Any], config: StudentConfig) -> None:
    """Raise ConfigError where ``config.options`` are none that ``builder`` takes."""
    parse(kind_of(builder), config)
