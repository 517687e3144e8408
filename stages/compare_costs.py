"""Costs of files for ``ossicle compare``: taken from a benchmark or an earlier comparison where one measured them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifact
from pipeline.config import BenchmarkConfig
from pipeline.errors import OssicleError
from pipeline.measure import arm, latency, model_cost
from pipeline.measure.onnx_parameters import onnx_parameters
from pipeline.measure.teacher_cost import teacher_costs
from pipeline.teachers.base import Teacher
from stages.compare_models import CostInput

EXACT = ("file_kb", "executed_macs", "int8_mac_share", "int8_mac_share_x86", "peak_activation_bytes")


class CostBook:
    """Figures by file, input shape, processor and runtime, kept in a folder so that nothing is measured twice.

    Args:
        folder: where figures are kept.
        benchmarks: ``benchmark.json`` files whose rows are taken.
        settings: how long is timed, and which processors are emulated.
        cache: folder of downloads, for the emulated processors.
    """

    def __init__(
        self, folder: Path, benchmarks: Sequence[Path], settings: BenchmarkConfig, cache: Path | None
    ) -> None:
        self.folder, self.settings, self.cache = folder, settings, cache
        self.machine = str(latency.processor()["name"])
        self.runtime = version("onnxruntime")
        self.rows = [row for path in benchmarks for row in self._rows(path)]

    def of_file(self, given: CostInput, *, arm_too: bool) -> dict[str, Any]:
        """Return the figures of one forward pass of a file; a figure that failed has its reason instead.

        Returns:
            ``file``, ``file_sha256``, ``parameters``, the keys of ``EXACT``, ``x86`` (p10, p50 and p95 in ms),
            ``arm`` (by processor), ``passes``, ``input_shape``, ``from`` and ``not_measured``.
        """
        sha256 = artifact.file_digest(given.path)
        shape = list(given.value.shape)
        row: dict[str, Any] = {
            "file": given.path.name, "file_sha256": sha256, "passes": given.passes, "input_shape": shape,
            "parameters": onnx_parameters(given.path), "not_measured": {},
        }  # fmt: skip
        kept = self._kept(sha256, shape)
        known = self._read(kept) or self._benchmarked(sha256, shape)
        if known is None:
            known = {"from": "measured here"}
            self._fill(row, known, "exact", lambda: model_cost.exact_costs(given.path, given.value))
            self._fill(row, known, "x86", lambda: {"x86": self._timed(given)})
            known = {key: known[key] for key in (*EXACT, "x86", "from") if key in known}
            if not row["not_measured"]:
                artifact.write_json(kept, known)
        row |= known
        row["arm"] = self._counted(given.path, given.value, row) if arm_too else {}
        return row

    def of_teacher(self, teacher: Teacher) -> dict[str, Any]:
        """Return parameters, MACs and time in torch of a teacher's own window."""
        kept = self._kept(teacher.digest(), [teacher.window_samples])
        known = self._read(kept)
        if known is None:
            found = teacher_costs(
                teacher, runs=self.settings.latency_runs, seconds=self.settings.latency_seconds
            )
            macs = sum(part["macs"] for part in found.values())
            network = found["teacher"]
            known = {
                "parameters": network["parameters"], "executed_macs": macs, "input_shape": network["input_shape"],
                "x86": network["x86"], "from": "measured here",
            }  # fmt: skip
            artifact.write_json(kept, known)
        reason = "the teacher is no file: it was measured in torch"
        return {**known, "file": "", "passes": 1, "arm": {}, "not_measured": {"KB, int8 and ARM": reason}}

    def _timed(self, given: CostInput) -> dict[str, Any]:
        bench = self.settings
        record = model_cost.time_here(
            given.path, given.value, runs=bench.latency_runs, seconds=bench.latency_seconds
        )
        times = {key: record[key] for key in ("p10_ms", "p50_ms", "p95_ms", "runs")}
        return {**times, "load_1min": record["before"]["load_1min"]}

    def _counted(self, path: Path, value: np.ndarray, row: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for cpu in self.settings.arm_cpus:
            try:
                found[cpu] = asdict(arm.count(path, value, cpu, cache=self.cache))
            except OssicleError as error:
                row["not_measured"][f"arm {cpu}"] = reason(error)
        return found

    def _fill(self, row: dict[str, Any], known: dict[str, Any], figure: str, measure: Any) -> None:
        try:
            known.update(measure())
        except OssicleError as error:
            row["not_measured"][figure] = reason(error)

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        record = json.loads(path.read_text(encoding="utf-8"))
        runtime = record.get("provenance", {}).get("packages", {}).get("onnxruntime")
        if (record.get("machine") or {}).get("name") != self.machine or runtime != self.runtime:
            return []
        return [{**row, "from": f"benchmark {path.parent.name}"} for row in record["rows"]]

    def _benchmarked(self, sha256: str, shape: list[int]) -> dict[str, Any] | None:
        for row in self.rows:
            same = row.get("file_sha256") == sha256 and row.get("input_shape") == shape
            if same and "x86" in row and all(key in row for key in EXACT):
                times = {key: row["x86"][key] for key in ("p10_ms", "p50_ms", "p95_ms", "runs")}
                return {**{key: row[key] for key in (*EXACT, "from")}, "x86": times}
        return None

    def _kept(self, content: str, shape: list[int]) -> Path:
        key = json.dumps([content, shape, self.machine, self.runtime])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def reason(error: OssicleError) -> str:
    """Return an error as one line."""
    return f"{error.problem}: {error.got}" if error.got is not None else error.problem
