"""What this machine has, as far as any stage would act on it. Looks only; fetches and imports nothing heavy."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# x86's names in /proc/cpuinfo, then ARM's.
FEATURES = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "BF16": {"avx512_bf16", "bf16"},
    "AMX": {"amx_bf16", "amx_int8"},
    "NEON": {"asimd"},
    "dot product": {"asimddp"},
    "i8mm": {"i8mm"},
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        what: e.g. ``GPU``.
        found: what is there.
        well: False where a stage does less, or cannot run, for want of it.
    """

    what: str
    found: str
    well: bool = True


def processor_features(flags: set[str]) -> list[str]:
    """Return which instruction sets that matter here are among a processor's ``flags``."""
    return [name for name, any_of in FEATURES.items() if any_of & flags]


def package(name: str) -> Finding:
    """Return the installed version of a Python distribution, or that it is absent."""
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "not installed", well=False)


def is_importable(module: str) -> bool:
    """Whether ``module`` can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def program(name: str) -> Finding:
    """Return where a program is, or that it is absent."""
    path = shutil.which(name)
    return Finding(name, path or "not installed", well=path is not None)


def free_gb(path: Path) -> float:
    """Return the free space, in 10^9 bytes, of the disk that holds ``path`` or its nearest existing parent."""
    existing = next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())
    return shutil.disk_usage(existing).free / 1e9


def memory_gb() -> float | None:
    """Return the main memory in 10^9 bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError):
        return None


def usable_cores() -> int:
    """Return the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def python() -> Finding:
    """Return the interpreter's version."""
    return Finding("Python", f"{platform.python_version()} ({sys.executable})", sys.version_info >= (3, 11))
