"""The error tree. Each error is also a standard Python error and says expected, got and what to run next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OssicleError(Exception):
    """Something a user can mend. Printed as a few lines, never as a traceback.

    Args:
        problem: one sentence, what is wrong.
        expected: what would have been right.
        got: what was found instead.
        run: the command (or edit) that mends it.
    """

    def __init__(
        self, problem: str, *, expected: object = None, got: object = None, run: str | None = None
    ) -> None:
        self.problem, self.expected, self.got, self.run = problem, expected, got, run
        super().__init__(problem)

    def __str__(self) -> str:
        lines = [self.problem]
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.got is not None:
            lines.append(f"  got:      {self.got}")
        if self.run is not None:
            lines.append(f"  next:     {self.run}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders in the embed workers; keyword-only fields need a hand.
        return (_rebuild, (type(self), self.problem, self.expected, self.got, self.run))


def _rebuild(
    kind: type[OssicleError], problem: str, expected: object, got: object, run: str | None
) -> OssicleError:
    error = kind.__new__(kind)
    OssicleError.__init__(error, problem, expected=expected, got=got, run=run)
    return error


class ConfigError(OssicleError, ValueError):
    """A recipe key is unknown, of the wrong type, or impossible together with another."""


class UnknownNameError(ConfigError, LookupError):
    """No entry of that name in a registry; near matches are listed."""


class ManifestError(OssicleError, ValueError):
    """A manifest is missing a column, leaks between splits, or names a path outside its root."""


class NothingToTellApartError(ManifestError):
    """A split of a task has one class, one value or no row, or tests a class that it does not train."""


class Hdf5Error(OssicleError, ValueError):
    """An HDF5 file is damaged, not of the layout expected, or claims what it does not hold."""


class AudioError(OssicleError, ValueError):
    """One clip cannot be used. ``reason`` is a short stable code that goes to ``rejects.parquet``."""

    def __init__(self, reason: str, problem: str, **fields: object) -> None:
        self.reason = reason
        super().__init__(problem, **fields)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[object, ...]:
        return (AudioError, (self.reason, self.problem))


class StoreError(OssicleError, ValueError):
    """A store is damaged, incomplete, or not of this schema."""


class DigestMismatchError(StoreError):
    """Two digests that must be equal are not (frontend, teacher, manifest, weights)."""


class WeightsError(OssicleError, ValueError):
    """A checkpoint is absent, of the wrong digest, or does not fit its model."""


class MissingArtifactError(OssicleError, FileNotFoundError):
    """A stage's input was not made yet; ``run`` names the stage that makes it."""


class MissingDependencyError(OssicleError, ImportError):
    """An optional package or program is not installed; ``run`` names how to get it."""


class ParityError(OssicleError, AssertionError):
    """Two computations that must agree do not (torch and ONNX, x86 and ARM)."""


class TrainingError(OssicleError, RuntimeError):
    """Training cannot go on (non-finite loss, empty store)."""


class MeasurementError(OssicleError, RuntimeError):
    """A cost figure could not be measured here; its row says why instead of a number."""


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return a phrase that lists the names closest to ``name``, or all of them if none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(names)
