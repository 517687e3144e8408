"""Which processes that share a study are still alive: a trial whose process died is run again by another."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

BEAT_SECONDS = 30.0
STALE_SECONDS = 300.0


@dataclass(frozen=True)
class Worker:
    """A process: its machine (host name, boot, process namespace), its id there, and when it started."""

    machine: str
    process: int
    started: str

    @classmethod
    def this(cls) -> Worker:
        """Return this process."""
        process = os.getpid()
        return cls(_machine(), process, _started(process) or uuid.uuid4().hex)

    @classmethod
    def parse(cls, text: str) -> Worker:
        """Return the worker of ``str(worker)``."""
        machine, process, started = text.rsplit("/", 2)
        return cls(machine, int(process), started)

    def __str__(self) -> str:
        return f"{self.machine}/{self.process}/{self.started}"

    def is_alive(self, last_beat: float | None, now: float) -> bool:
        """Whether it still runs: on this machine by its process, elsewhere by its last sign of life.

        Args:
            last_beat: time of that sign (UNIX seconds); None = there was none yet.
            now: this machine's time. Clocks that differ by minutes make live workers look dead.
        """
        if self.machine == _machine() and Path("/proc/self/stat").exists():
            return _started(self.process) == self.started
        return last_beat is not None and now - last_beat < STALE_SECONDS


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = [socket.gethostname().replace("/", "-")]
    if boot.is_file():
        # Containers of one machine share its boot and may share its name, but not their process numbers.
        parts += [boot.read_text().strip()[:8], str(Path("/proc/self/ns/pid").stat().st_ino)]
    return ":".join(parts)


def _started(process: int) -> str | None:
    """Return the start time of a process in clock ticks since boot; None if it is dead, or nobody can tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
