"""Suites: several tasks on the same tracks, embedded once (``data_manifests/suites/*.toml``)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from pipeline.config import Section
from pipeline.errors import ConfigError, near_matches

SUITE_SUFFIX = ".toml"


class Suite(Section):
    """Tasks that share tracks; its name stands for the mean over them.

    ``layout`` says how the folder is read: ``dear`` as :mod:`~pipeline.evaluation.dear_table` does.
    """

    name: str
    title: str
    about: str = ""
    licence: str = Field(min_length=1)
    layout: Literal["dear"]


def suite_names(folder: Path) -> list[str]:
    """Return the names of the suites in ``folder``, in alphabetical order."""
    return sorted(path.stem for path in folder.glob(f"*{SUITE_SUFFIX}"))


def read_suite(name: str, folder: Path) -> Suite:
    """Return the suite ``name`` of ``folder``.

    Raises:
        ConfigError: no such suite (near matches listed), unreadable TOML, or an impossible key.
    """
    path = folder / f"{name}{SUITE_SUFFIX}"
    if not path.is_file():
        raise ConfigError(
            f"no suite is called {name!r}", expected=near_matches(name, suite_names(folder)), got=name
        )
    try:
        return Suite(name=name, **tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        problems = [f"{'.'.join(str(p) for p in e['loc']) or 'suite'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(problems)}") from error
