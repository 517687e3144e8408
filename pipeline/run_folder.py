"""``run:FOLDER``: how a recipe names a finished run, as a teacher or as where training starts."""

from __future__ import annotations

from pathlib import Path

from pipeline import artifact
from pipeline.errors import ConfigError, MissingArtifactError

PREFIX = "run:"


def folder_of(name: str) -> Path:
    """Return the folder that ``run:FOLDER`` names; its last part may be a pattern of one match.

    Raises:
        MissingArtifactError: no finished run is there.
        ConfigError: several are.
    """
    given = name.removeprefix(PREFIX)
    found = [Path(given)]
    if any(sign in given for sign in "*?["):
        # A run's folder ends in a digest that a recipe cannot know beforehand.
        matches = sorted(Path(given).parent.glob(Path(given).name))
        found = [match for match in matches if artifact.is_finished(match)]
    if len(found) > 1:
        raise ConfigError(f"{name} names several runs", expected="one", got=", ".join(map(str, found[:6])))
    if not found or not artifact.is_finished(found[0]):
        raise MissingArtifactError(
            f"no finished run is at {given}", expected="a folder that ossicle distill made",
            got="none" if not found else str(found[0]), run="ossicle distill RECIPE",
        )  # fmt: skip
    return found[0]
