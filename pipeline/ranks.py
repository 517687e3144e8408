"""Which of several processes this one is, as torchrun and Slurm say it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import ConfigError

TORCHRUN = ("RANK", "WORLD_SIZE")
LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS")


@dataclass(frozen=True)
class Rank:
    """Shard s belongs to rank s mod ``world``.

    Attributes:
        rank: of this process, and ``world`` how many there are.
        local_rank: of this process on its host, and ``local_world`` how many share the host's cores and GPUs.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Rank:
        """Return what the launcher said: torchrun's ``RANK`` and ``WORLD_SIZE``, else Slurm's, else one rank.

        Slurm's count where ``srun`` started the process: the batch script itself also has the variables of
        task 0, and is not one of several.

        Raises:
            ConfigError: half of a pair is missing, no number, or impossible.
        """
        for names in (TORCHRUN, SLURM):
            if names is SLURM and "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment:
                continue
            if found := _pair(names, environment):
                local = _pair(LOCAL, environment) if names is TORCHRUN else None
                return cls(*found, *(local or (0, 1)))
        return cls()


def _pair(names: tuple[str, str], environment: Mapping[str, str]) -> tuple[int, int] | None:
    given = {name: environment[name] for name in names if environment.get(name, "") != ""}
    if not given:
        return None
    if len(given) < len(names):
        missing = next(name for name in names if name not in given)
        raise ConfigError(
            f"{next(iter(given))} is set and {missing} is not",
            expected=f"both {names[0]} and {names[1]}, as the launcher sets them, or neither",
            got=", ".join(f"{name}={value}" for name, value in given.items()),
            run=f"unset {next(iter(given))}, or start by torchrun or srun",
        )
    rank, world = (_number(name, given[name]) for name in names)
    if not 0 <= rank < world:
        raise ConfigError(
            f"{names[0]}={rank} is no rank of {names[1]}={world}",
            expected=f"{names[0]} from 0 to {names[1]} - 1",
            got=f"{rank} of {world}",
        )
    return rank, world


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name} is no whole number", expected="a count from 0", got=repr(text)) from error
