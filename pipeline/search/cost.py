"""What a candidate would cost, before any training: parameters and MACs at once, the file's costs by exporting it.

None depends on the weights' values, so that an untrained network is measured. What an int8 export leaves in
float for accuracy's sake is not foreseen here; ``ossicle export`` says it of the trained member.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import artifact
from pipeline.config import Recipe, SearchConfig, digest
from pipeline.errors import MissingDependencyError, OssicleError
from pipeline.measure.complexity import count_macs, parameter_count
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student

AT_ONCE = ("parameters", "macs")
COSTS = (*AT_ONCE, "flash_kb", "ram_kb", "arm_instructions_per_second")
CALIBRATION_ROWS = 8
# A log-mel's usual mean and deviation: they are constants inside the graph and change no cost.
MEAN, STD = -6.0, 4.0
# The exporter and the quantiser change global state (warnings, log levels, standard output).
_EXPORTING = threading.Lock()


@dataclass(frozen=True)
class Budget:
    """Upper limits by the names of ``COSTS``."""

    limits: Mapping[str, float]

    @classmethod
    def of(cls, search: SearchConfig) -> Budget:
        """Return the limits that a recipe sets."""
        found = {name: getattr(search, f"max_{name}") for name in COSTS}
        return cls({name: float(limit) for name, limit in found.items() if limit is not None})

    def excess(self, costs: Mapping[str, float]) -> str | None:
        """Return which limit ``costs`` are over, in words; None if they are within all that they name."""
        over = [
            f"{name} {costs[name]:,.0f} > {limit:,.0f}"
            for name, limit in self.limits.items()
            if name in costs and costs[name] > limit
        ]
        return ", ".join(over) or None


class CostMeter:
    """Measures candidates; what was measured once is read from ``folder``.

    Args:
        folder: of the measured costs, one JSON file a candidate.
        search: precision and CPU.
        cache: of downloads: the emulated root.
    """

    def __init__(self, folder: Path, search: SearchConfig, cache: Path | None = None) -> None:
        self._folder, self._search, self._cache = folder, search, cache

    def costs(self, recipe: Recipe, names: Sequence[str]) -> dict[str, float]:
        """Return the costs called ``names`` of one window (instructions: of one second) of the recipe's student.

        Raises:
            OssicleError: the network cannot be built, exported or emulated.
        """
        path = self._folder / f"{digest(self._identity(recipe))[:24]}.json"
        known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        lacking = [name for name in names if name not in known]
        if lacking:
            known |= self._measure(recipe, lacking)
            artifact.write_json(path, known)
        return {name: known[name] for name in names}

    def _identity(self, recipe: Recipe) -> dict[str, Any]:
        student = recipe.student.model_dump(mode="json", exclude={"weights", "trust_sha256"})
        export = recipe.export.model_dump(mode="json", include={"opset", "per_channel", "int8_ops"})
        return {
            "student": student, "frontend": recipe.embed.frontend.model_dump(mode="json"), "export": export,
            "window_seconds": recipe.embed.window_seconds, "precision": self._search.precision,
            "cpu": self._search.arm_cpu, "code": 1,
        }  # fmt: skip

    def _measure(self, recipe: Recipe, names: Sequence[str]) -> dict[str, float]:
        frontend = recipe.embed.frontend
        frames = frontend.frames(round(recipe.embed.window_seconds * frontend.sample_rate_hz))
        config = recipe.student.model_copy(update={"weights": None, "trust_sha256": None})
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                student = NormalisedStudent(build_student(config, frontend.mels), MEAN, STD).eval()
            found: dict[str, float] = {"parameters": parameter_count(student)}
            if "macs" in names:
                found["macs"] = count_macs(student, torch.zeros(1, 1, frontend.mels, frames))
        except (RuntimeError, ValueError, ArithmeticError) as error:
            if isinstance(error, OssicleError):
                raise
            # torch's own words about a layer without channels or a map that has become too small.
            raise OssicleError(
                f"{config.name} at width {config.width:g} cannot be built for {frontend.mels} mels x {frames} frames",
                got=str(error).strip().splitlines()[0],
            ) from error
        if set(names) - set(AT_ONCE):
            with _EXPORTING, tempfile.TemporaryDirectory(prefix="ossicle-cost-") as scratch:
                shape = (1, 1, frontend.mels, frames)
                found |= self._of_file(recipe, student, shape, Path(scratch), names)
        return found

    def _of_file(
        self, recipe: Recipe, student: nn.Module, shape: tuple[int, ...], folder: Path, names: Sequence[str]
    ) -> dict[str, float]:
        try:
            from pipeline.measure import model_cost
        except ImportError as error:
            raise MissingDependencyError(
                "flash, RAM and ARM instructions are those of an ONNX file",
                run="pip install 'ossicle[deploy]'",
            ) from error
        path = _export(recipe, student, shape, folder, self._search.precision)
        value = model_cost.example_log_mel(shape, MEAN, STD)
        exact = model_cost.exact_costs(path, value)
        found = {"flash_kb": exact["file_kb"], "ram_kb": exact["peak_activation_bytes"] / 1024}
        if "arm_instructions_per_second" in names:
            from pipeline.measure import arm

            counted = arm.count(path, value, self._search.arm_cpu, cache=self._cache)
            found["arm_instructions_per_second"] = counted.instructions / recipe.embed.window_seconds
        return found


def _export(recipe: Recipe, student: nn.Module, shape: tuple[int, ...], folder: Path, precision: str) -> Path:
    from pipeline.deploy import int8_graph
    from pipeline.deploy.metadata import ExportMetadata
    from pipeline.deploy.onnx_export import export_student
    from pipeline.measure.model_cost import example_log_mel

    metadata = ExportMetadata(
        frontend=recipe.embed.frontend, mean=MEAN, std=STD, student=recipe.student.name, precision=precision
    )
    path = folder / "student_fp32.onnx"
    export_student(student, path, metadata=metadata, opset=recipe.export.opset)
    if precision == "fp32":
        return path
    rows = example_log_mel((CALIBRATION_ROWS, *shape[1:]), MEAN, STD)
    settings = recipe.export.model_copy(update={"calibration": "minmax"})
    calibrated = int8_graph.calibrate(path, folder, rows, settings)
    target = folder / "student_s8s8.onnx"
    int8_graph.write_quantised(calibrated, target, "s8s8", settings.int8_ops)
    return target
