"""ONNX Runtime's C header: the system's, or that of a Debian package, fetched once into the cache."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HEADER = "onnxruntime_c_api.h"
SUITE, PACKAGE = "trixie", "libonnxruntime-dev"


@functools.cache
def header_folder() -> Path | None:
    """Return the folder of the header, or None where it is neither here nor to be had (or no C compiler is)."""
    if shutil.which("cc") is None or shutil.which("make") is None:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ossicle" / "c-headers"
    for folder in (Path("/usr/include/onnxruntime"), Path("/usr/include"), cache):
        if (folder / HEADER).is_file():
            return folder
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = _fetched(Path(scratch))
        except (subprocess.SubprocessError, OSError):
            return None
        if found is None:
            return None
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f".{os.getpid()}.{HEADER}"
        shutil.copyfile(found, partial)
        partial.replace(cache / HEADER)
    return cache


def _fetched(work: Path) -> Path | None:
    """Download the package with an apt state of its own and return the header's path."""
    for part in ("state/lists/partial", "cache/archives/partial", "etc"):
        (work / part).mkdir(parents=True)
    (work / "status").touch()
    listed = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"])
    mirrors = {
        line.split()[0]
        for line in listed.splitlines()
        if len(line.split()) == 2 and "-" not in line.split()[1]
    }
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.is_file() else ""
    lines = [f"deb {signed}{mirror} {SUITE} main\n" for mirror in sorted(mirrors)]
    if not lines:
        return None
    (work / "etc/debian.list").write_text("".join(lines))
    settings = {
        "Dir::State": work / "state", "Dir::State::status": work / "status", "Dir::Cache": work / "cache",
        "Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": work / "etc", "APT::Sandbox::User": "",
        "Debug::NoLocking": "true", "Acquire::Languages": "none",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    _run([*apt, "update"])
    _run([*apt, "download", PACKAGE], work)
    (archive,) = work.glob(f"{PACKAGE}_*.deb")
    _run(["dpkg-deb", "-x", str(archive), str(work / "tree")])
    return next((work / "tree").rglob(HEADER), None)


def _run(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=folder)
    return done.stdout
