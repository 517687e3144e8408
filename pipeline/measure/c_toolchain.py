"""Cross compilers and emulators for the C form: this machine's where installed, else unpacked into the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifact import write_json
from pipeline.errors import MeasurementError, MissingDependencyError
from pipeline.measure.arm_root import default_cache, locked, missing, unpack_packages

LAYOUT = 1
DOWNLOAD_MB = 190
TIMEOUT_SECONDS = 600
MAIN_FLAGS = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
MULTILIB = "thumb/v7e-m+fp/hard"
BOARD = "mps2-an386"


@dataclass(frozen=True)
class Tools:
    """One target's compiler, and the emulator where it is of the same packages.

    Attributes:
        compiler: the command and the options that it always takes.
        emulator: command of a Cortex-M4 board; empty for aarch64, whose QEMU counts instructions (``arm_root``).
    """

    compiler: tuple[str, ...]
    emulator: tuple[str, ...] = ()


PACKAGES = {
    "aarch64": ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
    "cortex-m4": ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "qemu-system-arm"),
}
PROGRAMS = {
    "aarch64": ("aarch64-linux-gnu-gcc",),
    "cortex-m4": ("arm-none-eabi-gcc", "qemu-system-arm"),
}


def is_ready(target: str, cache: Path | None = None) -> bool:
    """Whether the target's tools are installed or unpacked already."""
    return _installed(target) or (_folder(target, cache) / "tools.json").is_file()


def prepare(target: str, cache: Path | None = None) -> Tools:
    """Return the tools of ``aarch64`` or ``cortex-m4``, unpacking Debian's packages where they are not installed.

    Raises:
        MissingDependencyError: they are not installed, and no Debian package can be fetched here.
        MeasurementError: a download failed.
    """
    if target not in PACKAGES:
        raise MeasurementError("no such target of the C form", expected=", ".join(PACKAGES), got=target)
    if _installed(target):
        return _tools(target, None)
    folder = _folder(target, cache)
    if not (folder / "tools.json").is_file():
        reason = missing()
        if reason is not None:
            raise MissingDependencyError(
                f"no cross compiler for {target}",
                got=reason,
                run="apt-get install " + " ".join(PACKAGES[target]),
            )
        with locked(folder.with_name(folder.name + ".lock")):
            if not (folder / "tools.json").is_file():
                _unpack(target, folder)
    return _tools(target, folder)


def run_on_cortex_m(tools: Tools, program: Path, given: bytes, extra: Sequence[str] = ()) -> bytes:
    """Run a filter on the emulated Cortex-M4 board, files by semihosting; return what it wrote.

    Raises:
        MeasurementError: it failed or did not finish.
    """
    folder = program.parent
    (folder / "input.bin").write_bytes(given)
    (folder / "output.bin").unlink(missing_ok=True)
    words = ",".join(f"arg={word}" for word in (program.name, "input.bin", "output.bin", *extra))
    options = ["-nographic", "-monitor", "none", "-serial", "none", "-kernel", program.name]
    semihosting = ["-semihosting-config", f"enable=on,target=native,{words}"]
    try:
        done = subprocess.run(
            [*tools.emulator, "-M", BOARD, *options, *semihosting],
            cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(
            f"{program.name} did not finish on the Cortex-M4", expected=f"within {TIMEOUT_SECONDS} s"
        ) from error  # fmt: skip
    if done.returncode != 0 or not (folder / "output.bin").is_file():
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise MeasurementError(
            f"{program.name} failed on the emulated Cortex-M4 (exit code {done.returncode})",
            got=lines[-1] if lines else "no message",
        )
    return (folder / "output.bin").read_bytes()


def _installed(target: str) -> bool:
    return all(shutil.which(program) for program in PROGRAMS[target])


def _folder(target: str, cache: Path | None) -> Path:
    return (cache or default_cache()) / f"c-tools-{target}-{LAYOUT}"


def _unpack(target: str, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    host = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
    packages = unpack_packages(partial, "root", host.strip(), PACKAGES[target])
    shutil.rmtree(partial / "work")
    # The C library is this machine's: a program cannot start under another one than its loader's.
    for pattern in (
        "libc.so.6",
        "libm.so.6",
        "libdl.so.2",
        "libpthread.so.0",
        "librt.so.1",
        "libc-*.so",
        "libm-*.so",
    ):
        for path in partial.glob(f"root/lib/*-linux-gnu/{pattern}"):
            path.unlink()
    write_json(partial / "tools.json", {"packages": packages})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    _tools(target, folder)


def _tools(target: str, folder: Path | None) -> Tools:
    root = None if folder is None else folder / "root"
    if target == "aarch64":
        return Tools((*_program(root, "aarch64-linux-gnu-gcc"), *_aarch64_flags(root), "-static"))
    library = Path(MULTILIB) if root is None else root / "usr/lib/arm-none-eabi/newlib" / MULTILIB
    found: tuple[str, ...] = ()
    if root is not None:
        found = ("-isystem", str(root / "usr/include/newlib"), "-B", f"{library}/", "-L", str(library))
    specs = "--specs=rdimon.specs" if root is None else f"--specs={library / 'rdimon.specs'}"
    emulator = _program(root, "qemu-system-arm")
    if root is not None:
        emulator = (*emulator, "-L", str(root / "usr/share/qemu"))
    return Tools((*_program(root, "arm-none-eabi-gcc"), *found, *MAIN_FLAGS, specs), emulator)


def _aarch64_flags(root: Path | None) -> tuple[str, ...]:
    if root is None:
        return ()
    include, library = (str(root / "usr/aarch64-linux-gnu" / part) for part in ("include", "lib"))
    return (f"--sysroot={root}", "-isystem", include, "-B", library, "-L", library)


def _program(root: Path | None, name: str) -> tuple[str, ...]:
    """Return the words that start an installed program, or an unpacked one with the libraries beside it."""
    if root is None:
        return (name,)
    libraries = [
        str(p) for part in ("usr/lib", "lib") for p in sorted((root / part).glob("*-linux-gnu")) if p.is_dir()
    ]
    before = os.environ.get("LD_LIBRARY_PATH")
    path = ":".join([*libraries, *([before] if before else [])])
    return ("env", f"LD_LIBRARY_PATH={path}", str(root / "usr/bin" / name))


def packages_of(target: str, cache: Path | None = None) -> list[str]:
    """Return the package files that were unpacked for ``target``; none where its tools are installed."""
    record = _folder(target, cache) / "tools.json"
    if _installed(target) or not record.is_file():
        return []
    found: list[str] = json.loads(record.read_text(encoding="utf-8"))["packages"]
    return found
