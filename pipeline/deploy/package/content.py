"""The files of a package, in memory: each is copied from the export or made from its facts."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.deploy import metadata
from pipeline.deploy.bundle import FRONTEND
from pipeline.deploy.package import archive
from pipeline.deploy.package.c_programs import c99_program, example, onnxruntime_program
from pipeline.deploy.package.card import LICENCE_FILE, model_card
from pipeline.deploy.package.facts import Facts, Model
from pipeline.deploy.package.licences import legal_text
from pipeline.errors import MissingArtifactError
from pipeline.students.checkpoint_file import DESCRIPTION_FILE, WEIGHTS_FILE
from pipeline.students.classifier import WEIGHTS_FILE as CLASSIFIER_FILE

CARD, CONSTANTS, LABELS, CODE_LICENCE = "README.md", "frontend.json", "labels.json", "LICENSE-CODE"
EXAMPLE = "embed_wav.py"


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


def package_files(facts: Facts, export: Path) -> tuple[dict[str, bytes], str]:
    """Return every file of the package by path, ``SHA256SUMS`` included; and why it has no C99 program, if so.

    Args:
        facts: what the card says.
        export: folder of ``ossicle export``.
    """
    copied = [FRONTEND, WEIGHTS_FILE, DESCRIPTION_FILE, *(model.file for model in facts.models)]
    if facts.labels is not None:
        copied.append(CLASSIFIER_FILE)
    files = {name: (export / name).read_bytes() for name in copied}
    files[CONSTANTS] = _json(constants(facts))
    if facts.labels is not None:
        files[LABELS] = _json(list(facts.labels))
    files[EXAMPLE] = example(EXAMPLE)
    files |= onnxruntime_program(facts)
    c99, why_not = c99_program(facts, export)
    files |= c99
    files[CODE_LICENCE] = example(CODE_LICENCE)
    files[LICENCE_FILE] = licences(facts).encode()
    files[CARD] = model_card(facts, c99=bool(c99)).encode()
    return archive.with_sums(files), why_not


def constants(facts: Facts) -> dict[str, object]:
    """Return ``frontend.json``: what a program needs to know to feed the files."""
    frontend = facts.saved.frontend
    return {
        "schema": "ossicle-package/1",
        "sample_rate_hz": frontend.sample_rate_hz,
        "window_seconds": facts.window_seconds,
        "window_samples": facts.window_samples,
        "window_frames": frontend.frames(facts.window_samples),
        "frontend": frontend.model_dump(mode="json"),
        "normalisation": {"mean": facts.saved.mean, "std": facts.saved.std, "inside": "the student's files"},
        "embedding_dim": facts.saved.embedding_dim,
        "ship": facts.shipped.file,
        "files": {model.file: model.precision for model in facts.models},
        "inputs": {"frontend.onnx": "waveform (batch, samples)", "student": "log_mel (batch, 1, mels, time)"},
        "labels": LABELS if facts.labels is not None else None,
    }


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


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
