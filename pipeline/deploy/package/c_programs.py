"""The C programs of a package: one on ONNX Runtime's C library, and C99 without any where the kernels suffice."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pipeline.deploy.c.build import INCLUDE
from pipeline.deploy.c.frontend import write_frontend
from pipeline.deploy.c.graph import read
from pipeline.deploy.c.writer import write
from pipeline.deploy.package.facts import Facts
from pipeline.errors import OssicleError

ONNXRUNTIME, C99 = "c", "c99"
INT8 = "s8s8"
_EXAMPLES = resources.files("pipeline.deploy.package") / "examples"
_WAV, _CONSTANTS = "ossicle_wav.h", "ossicle_model.h"


def example(name: str) -> bytes:
    """Return one of the files that stand beside this module."""
    return (_EXAMPLES / name).read_bytes()


def onnxruntime_program(facts: Facts) -> dict[str, bytes]:
    """Return the program that runs any of the package's files, by path."""
    files = {"embed_wav.c": example("embed_wav.c"), "Makefile": example("Makefile")}
    return _with_shared(files, ONNXRUNTIME, facts)


def c99_program(facts: Facts, export: Path) -> tuple[dict[str, bytes], str]:
    """Return the program that holds the int8 student itself, by path, or nothing and why.

    There is one where the S8S8 file is the one to ship and the C kernels know all of its operators.
    """
    if facts.shipped.precision != INT8:
        return {}, f"it holds int8, and {facts.shipped.file} is the file to ship"
    about = [f"{facts.name}: {facts.shipped.file}", f"Licence of the weights: {facts.licence[1]}"]
    if facts.saved.teacher is not None and facts.saved.teacher.citation:
        about.append(f"Teacher: {facts.saved.teacher.citation}")
    try:
        frames = facts.saved.frontend.frames(facts.window_samples)
        student = write(read(export / facts.shipped.file, max_frames=frames), about=about).text
        frontend = write_frontend(facts.saved.frontend, about=about).text
    except OssicleError as error:
        return {}, error.problem + (f": {error.got}" if error.got is not None else "")
    files = {
        "embed_wav.c": example("embed_wav_c99.c"), "Makefile": example("Makefile.c99"),
        "ossicle_student.h": student.encode(), "ossicle_frontend.h": frontend.encode(),
        **{path.name: path.read_bytes() for path in sorted(INCLUDE.glob("*.h"))},
    }  # fmt: skip
    return _with_shared(files, C99, facts), ""


def constants(facts: Facts) -> str:
    """Return ``ossicle_model.h``."""
    return f"""/* Constants of {facts.name}; frontend.json has all of them. */
#ifndef OSSICLE_MODEL_H
#define OSSICLE_MODEL_H

#define OSSICLE_MODEL "{facts.shipped.file}"
#define OSSICLE_SAMPLE_RATE_HZ {facts.saved.frontend.sample_rate_hz}
#define OSSICLE_WINDOW_SAMPLES {facts.window_samples}
#define OSSICLE_EMBEDDING_DIM {facts.saved.embedding_dim}

#define OSSICLE_QUOTED(text) #text
#define OSSICLE_TEXT(text) OSSICLE_QUOTED(text)

#endif
"""


def _with_shared(files: dict[str, bytes], folder: str, facts: Facts) -> dict[str, bytes]:
    files = {**files, _WAV: example(_WAV), _CONSTANTS: constants(facts).encode()}
    return {f"{folder}/{name}": content for name, content in files.items()}
