"""Which files a benchmark measures: every precision of each exported student, and their frontends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import MissingArtifactError
from pipeline.measure import model_cost
from pipeline.measure.complexity import count_macs, parameter_count
from pipeline.recipe import Run, expand
from pipeline.students.saved import load_student, read_description
from stages import locations

PRECISIONS = ("fp32", "s8s8", "u8s8", "w8", "w4")
# What a file that ARM does not run is there for.
NOT_FOR_ARM = {
    "u8s8": "u8s8 is for timing on x86",
    "w8": "w8 has small weights and computes in float32: a size, no speed",
    "w4": "w4 has small weights and computes in float32: a size, no speed",
}


@dataclass(eq=False)
class Model:
    """One ONNX file to measure, its input, and the row that is being filled."""

    path: Path
    value: np.ndarray
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Label and precision."""
        return f"{self.row['model']} {self.row['precision']}"


def exported(recipe: Recipe, console: Console) -> list[Run]:
    """Return one exported seed of every run that is no control, the headline first.

    Raises:
        MissingArtifactError: nothing was exported yet.
    """
    chosen: dict[str, Run] = {}
    waiting: list[str] = []
    for one in expand(recipe):
        if one.recipe.train.control != "none" or one.name in chosen:
            continue
        try:
            ready = artifact.is_finished(locations.export_folder(one))
        except MissingArtifactError:
            ready = False
        if ready:
            chosen[one.name] = one
        else:
            waiting.append(one.label)
    for label in waiting:
        if label.rpartition("-seed")[0] not in chosen:
            console.print(f"benchmark: {label} is not exported yet; left out")
    if not chosen:
        raise MissingArtifactError(
            "no exported student to measure",
            expected=", ".join(waiting) or "a run that is no control",
            run=f"ossicle export {recipe.name}",
        )
    return sorted(chosen.values(), key=lambda one: one.name != recipe.headline)


def models(recipe: Recipe, runs: Sequence[Run]) -> list[Model]:
    """Return the files of ``runs`` with the first figures of their rows: shapes, parameters, MACs."""
    found: list[Model] = []
    frontends: dict[str, Model] = {}
    for one in runs:
        folder = locations.export_folder(one)
        saved = read_description(folder)
        frontend = saved.frontend
        samples = round(recipe.embed.window_seconds * frontend.sample_rate_hz)
        shape = (1, 1, frontend.mels, frontend.frames(samples))
        value = model_cost.example_log_mel(shape, saved.mean, saved.std)
        student = load_student(folder)
        macs = count_macs(student, torch.from_numpy(value))
        shared = {
            "kind": "student", "model": one.name, "run": one.label, "seed": one.seed,
            "student": saved.student.name, "headline": one.name == recipe.headline,
            "export": folder.name, "export_digest": artifact.read(folder).digest,
            "parameters": parameter_count(student), "macs": macs, "flops": 2 * macs, "input_shape": list(shape),
        }  # fmt: skip
        for precision in PRECISIONS:
            path = folder / f"student_{precision}.onnx"
            if path.is_file():
                found.append(Model(path, value, {**shared, "precision": precision, "not_measured": {}}))
        path = folder / "frontend.onnx"
        if artifact.file_digest(path) not in frontends:
            row = {
                "kind": "frontend", "model": "log-mel frontend", "run": one.label, "headline": False,
                "precision": "fp32", "parameters": 0, "input_shape": [1, samples], "not_measured": {},
            }  # fmt: skip
            frontends[artifact.file_digest(path)] = Model(path, model_cost.example_waveform(samples), row)
    return [*found, *frontends.values()]
