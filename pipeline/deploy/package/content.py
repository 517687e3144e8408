"""The files of a package, in memory: each is copied from the export or made from its facts."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from pipeline.audio.windows import frame_count
from pipeline.deploy import metadata
from pipeline.deploy.bundle import FRONTEND
from pipeline.deploy.package import archive
from pipeline.deploy.package.card import LICENCE_FILE, model_card
from pipeline.deploy.package.facts import Facts, Model
from pipeline.deploy.package.licences import legal_text
from pipeline.errors import MissingArtifactError
from pipeline.students.checkpoint_file import DESCRIPTION_FILE, WEIGHTS_FILE
from pipeline.students.classifier import WEIGHTS_FILE as CLASSIFIER_FILE

CARD, CONSTANTS, LABELS, CODE_LICENCE = "README.md", "frontend.json", "labels.json", "LICENSE-CODE"
EXAMPLE, C_FOLDER, C_CONSTANTS = "embed_wav.py", "c", "ossicle_model.h"
C99, ONNXRUNTIME = "c99", "onnxruntime"
_EXAMPLES = resources.files("pipeline.deploy.package") / "examples"


def student_files(export: Path, ship: str) -> tuple[Model, ...]:
    """Return the ONNX files of a student in an export folder, float32 first.

    Args:
        export: the folder.
        ship: name of the file to ship.

    Raises:
        MissingArtifactError: the folder has no float32 file, or not the one to ship.
    """
    found = []
    for path in sorted(
        export.glob("student_*.onnx"), key=lambda path: (path.stem != "student_fp32", path.name)
    ):
        precision = str(metadata.read(path)["precision"])
        if path.stem == "student_stream":
            precision += ", frame by frame"
        found.append(Model(path.name, precision, path.stat().st_size, path.name == ship))
    names = [model.file for model in found]
    if "student_fp32.onnx" not in names or ship not in names:
        raise MissingArtifactError(
            f"{export} is no complete export", expected=f"student_fp32.onnx and {ship}",
            got=", ".join(names) or "no student", run="ossicle export RECIPE",
        )  # fmt: skip
    return tuple(found)


def package_files(facts: Facts, export: Path, c_files: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """Return every file of the package by path, ``SHA256SUMS`` included.

    Args:
        facts: what the card says.
        export: folder of ``ossicle export``.
        c_files: a C program for this very model, by name; None = the one on ONNX Runtime's C library.
    """
    copied = [FRONTEND, WEIGHTS_FILE, DESCRIPTION_FILE, *(model.file for model in facts.models)]
    if facts.labels is not None:
        copied.append(CLASSIFIER_FILE)
    files = {name: (export / name).read_bytes() for name in copied}
    files[CONSTANTS] = _json(constants(facts))
    if facts.labels is not None:
        files[LABELS] = _json(list(facts.labels))
    files[EXAMPLE] = _example(EXAMPLE)
    if c_files is None:
        c_files = {name: _example(name) for name in ("embed_wav.c", "Makefile")}
        c_files[C_CONSTANTS] = c_constants(facts).encode()
    files |= {f"{C_FOLDER}/{name}": content for name, content in c_files.items()}
    files[CODE_LICENCE] = _example(CODE_LICENCE)
    files[LICENCE_FILE] = licences(facts).encode()
    files[CARD] = model_card(facts).encode()
    return archive.with_sums(files)


def constants(facts: Facts) -> dict[str, object]:
    """Return ``frontend.json``: what a program needs to know to feed the files."""
    frontend = facts.saved.frontend
    return {
        "schema": "ossicle-package/1",
        "sample_rate_hz": frontend.sample_rate_hz,
        "window_seconds": facts.window_seconds,
        "window_samples": window_samples(facts),
        "window_frames": frontend.frames(window_samples(facts)),
        "frontend": frontend.model_dump(mode="json"),
        "normalisation": {"mean": facts.saved.mean, "std": facts.saved.std, "inside": "the student's files"},
        "embedding_dim": facts.saved.embedding_dim,
        "ship": facts.shipped.file,
        "files": {model.file: model.precision for model in facts.models},
        "inputs": {"frontend.onnx": "waveform (batch, samples)", "student": "log_mel (batch, 1, mels, time)"},
        "labels": LABELS if facts.labels is not None else None,
    }


def window_samples(facts: Facts) -> int:
    """Return the samples of a window at the frontend's rate."""
    return frame_count(facts.window_seconds, facts.saved.frontend.sample_rate_hz)


def c_constants(facts: Facts) -> str:
    """Return ``ossicle_model.h``."""
    return f"""/* Constants of {facts.name}; frontend.json has all of them. */
#ifndef OSSICLE_MODEL_H
#define OSSICLE_MODEL_H

#define OSSICLE_MODEL "{facts.shipped.file}"
#define OSSICLE_SAMPLE_RATE_HZ {facts.saved.frontend.sample_rate_hz}
#define OSSICLE_WINDOW_SAMPLES {window_samples(facts)}
#define OSSICLE_EMBEDDING_DIM {facts.saved.embedding_dim}

#define OSSICLE_QUOTED(text) #text
#define OSSICLE_TEXT(text) OSSICLE_QUOTED(text)

#endif
"""


def licences(facts: Facts) -> str:
    """Return ``LICENSES.md``: whose work is in the weights, and on what terms."""
    saved = facts.saved
    lines = ["# Licences", ""]
    if facts.non_commercial:
        lines += [f"**NON-COMMERCIAL**: {'; '.join(facts.non_commercial)}.", ""]
    lines += ["## Weights", "", f"{facts.licence[1]}.", ""]
    if saved.teacher is not None:
        lines += [
            "## Teacher",
            "",
            f"- {saved.teacher.name}: {saved.teacher.licence}. {saved.teacher.citation}",
            "",
        ]
    if saved.started_from is not None:
        start = saved.started_from
        lines += ["## Checkpoint that training started from", ""]
        lines += [f"- {start.file} (SHA-256 {start.sha256}): {start.licence}. {start.citation}", ""]
    lines += ["## Data", "", "Sound that was heard in training. None of it is in this package.", ""]
    lines += [f"- {dataset.name}: {', '.join(dataset.licences)}" for dataset in facts.datasets]
    if facts.scores:
        lines += ["", "## Evaluation", ""]
        lines += [
            f"- {title}: {text}" for title, text in {s.title: s.task_licence for s in facts.scores}.items()
        ]
    lines += ["", "## Code", "", f"The example programs: Apache-2.0, in `{CODE_LICENCE}`."]
    named = [facts.licence[1], *(licence for dataset in facts.datasets for licence in dataset.licences)]
    named += [credit.licence for credit in (saved.teacher, saved.started_from) if credit is not None]
    texts = {text: found for text in named if (found := legal_text(text))}
    if texts:
        lines += ["", "## Texts", "", *(f"- {text}: <{texts[text]}>" for text in sorted(texts))]
    return "\n".join(lines) + "\n"


def _example(name: str) -> bytes:
    return (_EXAMPLES / name).read_bytes()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
