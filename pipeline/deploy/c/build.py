"""Compile the C form and run it: on this machine, or in QEMU with a cross compiler."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipeline.errors import MeasurementError, MissingDependencyError

HERE = Path(__file__).parent
INCLUDE, SOURCES = HERE / "include", HERE / "sources"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
OPTIMISED = ("-O3",)
SANITISED = (
    "-O1",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
STUDENT_FILTER, FRONTEND_FILTER = "student_filter.c", "frontend_filter.c"
TIMEOUT_SECONDS = 600


def compiler() -> str | None:
    """Return this machine's C compiler, or None."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compile_source(
    source: Path,
    headers: Path,
    target: Path,
    *,
    flags: Sequence[str] = OPTIMISED,
    command: Sequence[str] = (),
) -> Path:
    """Compile one source with every warning an error.

    Args:
        source: the file with ``main``.
        headers: folder of ``ossicle_student.h`` and ``ossicle_frontend.h``.
        target: the program to write.
        flags: further ones, after :data:`STRICT`.
        command: the compiler and what it always takes; default this machine's.

    Raises:
        MissingDependencyError: no C compiler.
        MeasurementError: it refuses the source.
    """
    own = compiler()
    words = list(command) or ([own] if own else [])
    if not words:
        raise MissingDependencyError(
            "no C compiler", expected="cc, gcc or clang", run="apt-get install gcc libc6-dev"
        )
    done = subprocess.run(
        [*words, *STRICT, *flags, "-I", str(headers), "-I", str(INCLUDE), str(source), "-o", str(target), "-lm"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        first = next(
            (line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:300]
        )
        raise MeasurementError(f"{Path(words[0]).name} refuses {source.name}", got=first)
    return target


def run_program(
    program: Path, given: bytes, *, prefix: Sequence[str] = (), extra: Sequence[str] = ()
) -> bytes:
    """Run a filter on ``given`` and return what it wrote.

    Args:
        program: compiled from one of the filters.
        given: its input file.
        prefix: an emulator and its options.
        extra: arguments after input and output.

    Raises:
        MeasurementError: it failed or did not finish.
    """
    with tempfile.TemporaryDirectory(prefix="ossicle-c-") as scratch:
        folder = Path(scratch)
        (folder / "input.bin").write_bytes(given)
        words = [*prefix, str(program), "input.bin", "output.bin", *extra]
        try:
            done = subprocess.run(
                words, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(
                f"{program.name} did not finish", expected=f"within {TIMEOUT_SECONDS} s", got="stopped"
            ) from error  # fmt: skip
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            shown = next(
                (line for line in lines if "ERROR" in line or "runtime error" in line),
                lines[-1] if lines else "",
            )
            raise MeasurementError(
                f"{program.name} failed (exit code {done.returncode})", got=shown or "no message"
            )
        return (folder / "output.bin").read_bytes()


def student_input(log_mels: Sequence[Float[np.ndarray, "mels frames"]]) -> bytes:
    """Return the input file of ``student_filter`` for clips of any lengths."""
    parts = [
        struct.pack("=i", x.shape[1]) + np.ascontiguousarray(x.T, np.float32).tobytes() for x in log_mels
    ]
    return b"".join(parts)


def frontend_input(waveforms: Sequence[tuple[int, Float[np.ndarray, " samples"]]]) -> bytes:
    """Return the input file of ``frontend_filter`` for (portion, waveform) pairs; portion 0 is the whole at once."""
    parts = [
        struct.pack("=ii", portion, len(x)) + np.asarray(x, np.float32).tobytes() for portion, x in waveforms
    ]
    return b"".join(parts)


def frontend_output(written: bytes, mels: int) -> list[Float[np.ndarray, "mels frames"] | None]:
    """Return the log-mels in the output file of ``frontend_filter``; None where a waveform was too short."""
    found: list[np.ndarray | None] = []
    at = 0
    while at < len(written):
        (frames,) = struct.unpack_from("=i", written, at)
        at += 4
        if frames < 0:
            found.append(None)
            continue
        values = np.frombuffer(written, np.float32, frames * mels, at).reshape(frames, mels)
        at += values.nbytes
        found.append(values.T)
    return found
