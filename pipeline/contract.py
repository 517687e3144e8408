"""What the checkers of teachers and students say: one finding a part of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.errors import OssicleError


@dataclass(frozen=True)
class Finding:
    """One part of the contract: whether it is kept, and in words what breaks it."""

    part: str
    problem: str = ""

    @property
    def kept(self) -> bool:
        """Whether nothing is wrong with this part."""
        return not self.problem


def tried(part: str, look: Callable[[], Iterator[str]]) -> Finding:
    """Return what ``look`` finds wrong with ``part``; whatever it raises is a finding too."""
    try:
        return Finding(part, "; ".join(dict.fromkeys(look())))
    except OssicleError as error:
        return Finding(part, f"it is refused: {error.problem}")
    except Exception as error:  # a stranger's code may raise anything; the check reports it and goes on
        first = str(error).splitlines()[0][:200] if str(error) else ""
        return Finding(part, f"it raises {type(error).__name__}: {first}")
