"""What an exported file says about itself: every constant a device needs to use it, and whom to credit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx

from pipeline import artifact
from pipeline.config import LogMelConfig, canonical_json
from pipeline.errors import OssicleError

PREFIX = "ossicle."


@dataclass(frozen=True)
class ExportMetadata:
    """The ``metadata_props`` of an exported ONNX file, as typed fields.

    Attributes:
        frontend: constants of the log-mel whose output (or which itself) the file is about.
        mean: subtracted from the log-mel inside the graph; None for a frontend file.
        std: divides the log-mel inside the graph; None for a frontend file.
        embedding_dim: width of ``embedding``; None for a frontend file.
        student: name of the network; empty for a frontend file.
        teacher: name of the network whose embeddings it learned; empty for controls.
        teacher_licence: licence of the weights that the student learned from.
        teacher_credit: whom that licence asks to credit.
        run: label of the training run.
        run_digest: SHA-256 identity of the training run.
        precision: ``fp32``, ``s8s8`` or ``u8s8`` (activations, weights).
        extra: further text properties, such as calibration and the operators kept in float.
    """

    frontend: LogMelConfig
    mean: float | None = None
    std: float | None = None
    embedding_dim: int | None = None
    student: str = ""
    teacher: str = ""
    teacher_licence: str = ""
    teacher_credit: str = ""
    run: str = ""
    run_digest: str = ""
    precision: str = "fp32"
    extra: dict[str, str] = field(default_factory=dict)

    def properties(self) -> dict[str, str]:
        """Return the text properties that go into the file, each name beginning with ``ossicle.``."""
        found: dict[str, str] = {
            "version": ossicle_version(),
            "frontend": canonical_json(self.frontend),
            "precision": self.precision,
            "student": self.student,
            "teacher": self.teacher,
            "teacher_licence": self.teacher_licence,
            "teacher_credit": self.teacher_credit,
            "run": self.run,
            "run_digest": self.run_digest,
            **self.extra,
        }
        if self.mean is not None and self.std is not None:
            found["normalisation"] = canonical_json({"mean": self.mean, "std": self.std})
        if self.embedding_dim is not None:
            found["embedding_dim"] = str(self.embedding_dim)
        return {PREFIX + name: text for name, text in found.items() if text}


def ossicle_version() -> str:
    """Return the installed version of ossicle, or ``unknown`` when it runs uninstalled."""
    try:
        return version("ossicle")
    except PackageNotFoundError:
        return "unknown"


def embed(path: Path, properties: dict[str, str]) -> None:
    """Make ``properties`` the ONNX file's only metadata.

    What the exporter and the quantiser left goes: stack traces with this machine's paths at every node.
    """
    model = onnx.load(str(path))
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.helper.set_model_props(model, properties)
    artifact.write_bytes(path, model.SerializeToString())


def read(path: Path) -> dict[str, Any]:
    """Return the ossicle properties of an ONNX file, without their prefix, JSON values decoded.

    Raises:
        OssicleError: the file was not made by ``ossicle export``.
    """
    model = onnx.load(str(path), load_external_data=False)
    found = {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}
    if "frontend" not in found:
        raise OssicleError(
            f"{path} carries no ossicle metadata",
            expected=f"a property {PREFIX}frontend",
            run="ossicle export",
        )
    decoded = {name: json.loads(found[name]) for name in ("frontend", "normalisation") if name in found}
    if "embedding_dim" in found:
        decoded["embedding_dim"] = int(found["embedding_dim"])
    return {**found, **decoded}
