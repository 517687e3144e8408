"""What a student can be converted for: names of runtimes and of Arm's NPUs, and the systems those sit in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import UnknownNameError, near_matches

ACCELERATORS = (
    "ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512",
    "ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048",
)  # fmt: skip
LITERT, EXECUTORCH = "litert", "executorch"
TARGETS = (LITERT, *ACCELERATORS, EXECUTORCH, *(f"{EXECUTORCH}-{name}" for name in ACCELERATORS))
# Arm's own figures for boards of each family, in the configuration file that Vela carries.
SYSTEMS = {
    "u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "u65": ("Ethos_U65_High_End", "Dedicated_Sram"),
    "u85": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram"),
}


@dataclass(frozen=True)
class Target:
    """One of ``TARGETS``, with the system that Vela is to assume.

    Attributes:
        name: ``litert``; ``ethos-u55-128`` and the like (LiteRT wholly in int8, compiled by Vela); ``executorch``;
            ``executorch-ethos-u55-128`` and the like.
        system_config: Vela's name of clock and memories; None = Arm's for the family.
        memory_mode: Vela's memory mode; None = the family's.
    """

    name: str
    system_config: str | None = None
    memory_mode: str | None = None

    def __post_init__(self) -> None:
        if self.name not in TARGETS:
            raise UnknownNameError(
                f"no target is called {self.name!r}", expected=near_matches(self.name, TARGETS), got=self.name
            )

    @property
    def accelerator(self) -> str | None:
        """The NPU, or None."""
        found = re.search(r"ethos-u\d+-\d+$", self.name)
        return found[0] if found else None

    @property
    def needs_executorch(self) -> bool:
        """Whether ExecuTorch writes it, in an environment of its own."""
        return self.name.startswith(EXECUTORCH)

    @property
    def system(self) -> tuple[str, str] | None:
        """Vela's system and memory mode; None where no NPU is meant."""
        if self.accelerator is None:
            return None
        system, memory = SYSTEMS[self.accelerator.split("-")[1]]
        return self.system_config or system, self.memory_mode or memory
