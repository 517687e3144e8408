"""The per-layer breakdown of each exported student: ``layers.json``, and a table and a plot a file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import artifact
from pipeline.errors import OssicleError
from pipeline.measure import arm_layers, layers
from pipeline.measure.layers import Layer
from stages.benchmark_models import NOT_FOR_ARM, Model

RESULT = "layers.json"
# The dot product decides what int8 wins, so the layers are counted on a core that has it.
PREFERRED_CPUS = ("cortex-a76", "cortex-a55", "cortex-a72", "cortex-a53")


def measure(models: Sequence[Model], cpus: Sequence[str], cache: Path | None) -> dict[str, Any]:
    """Return the record of ``layers.json``; what could not be measured stands in the models' rows with its reason.

    Args:
        models: students' files; those that ARM never runs and frontends are passed over.
        cpus: processors that can be counted; the first of ``PREFERRED_CPUS`` among them is; none = time alone.
        cache: folder of downloads.
    """
    cpu = next((name for name in PREFERRED_CPUS if name in cpus), None)
    breakdowns: dict[Model, list[Layer]] = {}
    for model in models:
        if model.row["kind"] == "student" and model.row["precision"] not in NOT_FOR_ARM:
            try:
                breakdowns[model] = layers.layers(model.path, model.value)
            except OssicleError as error:
                model.row["not_measured"]["layers"] = reason(error)
    if cpu is not None:  # after the times: emulation beside them would spoil them
        _count(breakdowns, cpu, cache)
    found = {
        model.name: {
            "model": model.row["model"], "precision": model.row["precision"],
            "file_sha256": artifact.file_digest(model.path), "layers": layers.as_json(breakdown),
        }
        for model, breakdown in breakdowns.items()
    }  # fmt: skip
    return {"schema": "ossicle-layers/1", "cpu": cpu, "profiled_runs": layers.RUNS, "models": found}


def _count(breakdowns: dict[Model, list[Layer]], cpu: str, cache: Path | None) -> None:
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        jobs = {
            model: pool.submit(arm_layers.count, model.path, model.value, cpu, cache=cache)
            for model in breakdowns
        }
        for model, job in jobs.items():
            try:
                counts = job.result().by_layer
            except OssicleError as error:
                model.row["not_measured"][f"layers {cpu}"] = reason(error)
            else:
                breakdowns[model] = [
                    replace(layer, instructions=counts[layer.place]) for layer in breakdowns[model]
                ]


def remove(folder: Path) -> None:
    """Remove the files of an earlier breakdown."""
    for left in [folder / RESULT, *folder.glob("layers-*")]:
        left.unlink(missing_ok=True)


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write ``layers.json`` and, of each model, ``layers-NAME.md`` and ``layers-NAME.svg`` (with matplotlib)."""
    for name, entry in record["models"].items():
        breakdown = layers.from_json(entry["layers"])
        safe = re.sub(r"[^A-Za-z0-9_.]+", "-", name)
        title = title_of(record["cpu"], breakdown)
        artifact.write_bytes(
            folder / f"layers-{safe}.md", layers.markdown(breakdown, f"{name}: {title}").encode()
        )
        drawn = _plot(breakdown, f"{name}: {title}", safe)
        if drawn is not None:
            artifact.write_bytes(folder / f"layers-{safe}.svg", drawn)
    artifact.write_json(folder / RESULT, record)


def read(folder: Path) -> dict[str, Any] | None:
    """Return ``layers.json`` of a benchmark's folder, or None."""
    path = folder / RESULT
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def title_of(cpu: str | None, breakdown: Sequence[Layer]) -> str:
    """Return what the shares of a breakdown are of."""
    counted = cpu is not None and all(layer.instructions is not None for layer in breakdown)
    return f"instructions executed on an emulated {cpu}" if counted else "time on this x86"


def reason(error: OssicleError) -> str:
    """Return an error in one line, for a figure's place."""
    return f"{error.problem}: {error.got}" if error.got is not None else error.problem


def _plot(breakdown: Sequence[Layer], title: str, name: str) -> bytes | None:
    try:
        from stages.report_page.layer_figure import layer_figure, standalone_svg
    except ModuleNotFoundError:
        return None  # matplotlib is the report's extra; the table says the same
    return standalone_svg(layer_figure(breakdown, title), name)
