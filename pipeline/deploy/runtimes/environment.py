"""Python environments of their own for tools that need another torch, or weigh gigabytes: built once, in the cache.

An environment is a virtual environment of pinned versions, named after them. Its marker is written last, so that an
interrupted build is begun again, never used.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline import artifact
from pipeline.errors import MissingDependencyError, OssicleError

MARKER = "environment.json"
LISTED = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.name: d.version for d in m.distributions()}, sort_keys=True))"
)
Report = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """What is installed, in order, and how it is seen to work.

    Attributes:
        name: of its folder.
        steps: requirements, pinned; each step is one call of pip, so that the first may choose torch's build.
        check: modules that must import.
        download_mb: fetched, about; ``disk_mb``: installed.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    check: tuple[str, ...]
    download_mb: int = 0
    disk_mb: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of pins and Python version, first 12 digits."""
        content = json.dumps([self.steps, sys.version_info[:2], os.uname().machine])
        return hashlib.sha256(content.encode()).hexdigest()[:12]


# torch first: by itself it takes the build that pip's sources prefer (the CPU one, where they say so).
EXECUTORCH = Environment(
    "executorch",
    (
        ("torch==2.13.0",),
        ("executorch==1.5.1", "ethos-u-vela==5.2.0", "tosa-tools==2026.8.0", "torch==2.13.0"),
    ),
    ("executorch.exir", "executorch.runtime", "executorch.backends.arm.ethosu", "tosa_serializer"),
    download_mb=350,
    disk_mb=1700,
)


def folder_of(environment: Environment, cache: Path) -> Path:
    """Return the environment's folder in ``cache``, built or not."""
    return cache / "runtimes" / f"{environment.name}-{environment.digest}"


def is_ready(environment: Environment, cache: Path) -> bool:
    """Whether the environment was built to its end."""
    return (folder_of(environment, cache) / MARKER).is_file()


def python_of(environment: Environment, cache: Path) -> Path:
    """Return the interpreter of a finished environment.

    Raises:
        MissingDependencyError: it is not built.
    """
    if not is_ready(environment, cache):
        raise MissingDependencyError(
            f"the {environment.name} environment is not built",
            expected=str(folder_of(environment, cache)),
            run=f"make runtimes (about {environment.download_mb} MB to fetch, {environment.disk_mb} MB on disk)",
        )
    return folder_of(environment, cache) / "bin" / "python"


def prepare(environment: Environment, cache: Path, report: Report) -> Path:
    """Return the environment's interpreter, building it first where it is not there.

    Safe against interruption and against other processes that want it too.

    Args:
        environment: what to install.
        cache: folder of downloads.
        report: told of each step.

    Raises:
        OssicleError: too little space.
        MissingDependencyError: pip could not fetch or install (no network, another platform).
    """
    folder = folder_of(environment, cache)
    if not is_ready(environment, cache):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock")):
            if not is_ready(environment, cache):
                _build(environment, folder, report)
    return python_of(environment, cache)


def _build(environment: Environment, folder: Path, report: Report) -> None:
    free = shutil.disk_usage(folder.parent).free // 1_000_000
    if free < 2 * environment.disk_mb:
        raise OssicleError(
            f"too little space for the {environment.name} environment",
            expected=f"{2 * environment.disk_mb} MB free at {folder.parent}",
            got=f"{free} MB",
        )
    if folder.exists():
        shutil.rmtree(folder)
    number = len(environment.steps)
    report(f"{environment.name}: a new environment, about {environment.download_mb} MB to fetch")
    python = str(folder / "bin" / "python")
    venv, pip = [sys.executable, "-m", "venv", str(folder)], [python, "-m", "pip"]
    if importlib.util.find_spec("pip") is not None:
        # Our own pip fills the environment: unpacking another one takes longer than small environments themselves.
        venv, pip = [*venv, "--without-pip"], [sys.executable, "-m", "pip", "--python", python]
    _run(environment, venv)
    for position, step in enumerate(environment.steps, start=1):
        report(f"{environment.name}: step {position} of {number}: pip install {' '.join(step)}")
        _run(environment, [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-input", *step])
    report(f"{environment.name}: does it import?")
    _run(environment, [python, "-c", "import " + ", ".join(environment.check)])
    packages = json.loads(_run(environment, [python, "-c", LISTED]))
    artifact.write_json(folder / MARKER, {"steps": environment.steps, "packages": packages})


def _run(environment: Environment, command: list[str]) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
    if done.returncode == 0:
        return done.stdout
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "Error" in line] or lines[-2:] or ["no message"]
    raise MissingDependencyError(
        f"the {environment.name} environment could not be built",
        expected="success of: " + " ".join(Path(word).name if "/" in word else word for word in command[:12]),
        got="; ".join(errors[-2:]),
        run="the same command with a network, or with pip pointed at an index that holds these versions",
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
