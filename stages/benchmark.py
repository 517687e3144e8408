"""``ossicle benchmark``: what each exported model costs, in exact counts, on x86, on ARM, and on a board."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import OssicleError
from pipeline.measure import arm, arm_root, extra_tables, latency, model_cost, remote, streaming_cost
from pipeline.measure.teacher_cost import load_teacher, teacher_costs
from pipeline.recipe import Run
from stages import benchmark_layers, benchmark_table, locations, shipped_file
from stages.benchmark_layers import reason
from stages.benchmark_models import NOT_FOR_ARM, Model, exported, models
from stages.console import progress_bar

RESULT = "benchmark.json"


def run(recipe: Recipe, *, console: Console, host: str | None = None) -> Path:
    """Measure the recipe's exported students, their frontend and the teacher; finished figures are reused.

    Args:
        recipe: its ``benchmark`` section says what is measured.
        console: for the bar and the table.
        host: ``user@board``: also time every file there; written to ``board-<host>.json``.

    Returns:
        The folder that holds ``benchmark.json``.

    Raises:
        MissingArtifactError: nothing was exported yet.
    """
    runs = exported(recipe, console)
    folder = locations.benchmark_folder(recipe)
    config, inputs = _identity(recipe, runs)
    if _is_reusable(folder, artifact.identity("benchmark", config, inputs)):
        console.print(f"benchmark: reused from {folder}")
    else:
        _measure(recipe, runs, folder, console)
        exports = {one.name: locations.export_folder(one) for one in runs}
        streaming_cost.write_table(
            folder, [(name, artifact.read(export).digest, export) for name, export in exports.items()],
            runs=recipe.benchmark.latency_runs, seconds=recipe.benchmark.latency_seconds, recipe=recipe.name,
        )  # fmt: skip
        rows = _read(folder)["rows"]
        failure = _arm_failure(rows) if recipe.benchmark.arm else None
        summary = {"rows": len(rows), "arm_missing": failure}
        artifact.finish(folder, kind="benchmark", config=config, inputs=inputs, summary=summary)
    record = _read(folder)
    board_host = host or recipe.benchmark.host
    board = _time_on_board(recipe, runs, folder, board_host, console) if board_host else None
    digests = {row["export_digest"] for row in record["rows"] if "export_digest" in row}
    extra, stale = extra_tables.read(folder, digests)
    console.print(benchmark_table.text(record, board, extra), markup=False, soft_wrap=True)
    losses = {one.name: shipped_file.losses(artifact.read(locations.export_folder(one))) for one in runs}
    for note in [*benchmark_table.notes(record, board, losses), *stale]:
        console.print(f"benchmark: {note}")
    if recipe.benchmark.layers:
        console.print(f"benchmark: layer by layer in {folder}/layers-*.md and .svg")
    return folder


def _identity(recipe: Recipe, runs: list[Run]) -> tuple[dict[str, Any], dict[str, str]]:
    config = {
        "benchmark": recipe.benchmark.model_dump(mode="json", exclude={"host", "ssh_config"}),
        "window_seconds": recipe.embed.window_seconds,
        "teacher": recipe.embed.teacher.name,
        "headline": recipe.headline,
        "code": 2,
    }
    return config, {one.label: artifact.read(locations.export_folder(one)).digest for one in runs}


def _is_reusable(folder: Path, work: str) -> bool:
    """Whether these figures are there, ARM's too unless what they lacked (apt, a compiler) is lacking still."""
    if not artifact.is_finished(folder, work) or not (folder / RESULT).is_file():
        return False
    before = artifact.read(folder).summary["arm_missing"]
    return before is None or before["cause"] is None or arm_root.missing() is not None


def _measure(recipe: Recipe, runs: list[Run], folder: Path, console: Console) -> None:
    found = models(recipe, runs)
    bench = recipe.benchmark
    counted = [m for m in found if bench.arm and m.row["precision"] not in NOT_FOR_ARM]
    steps = 2 * len(found) + len(counted) * len(bench.arm_cpus) + 1 + bench.layers
    with progress_bar(console) as progress:
        bar = progress.add_task("benchmark", total=steps)
        for model in found:
            progress.update(bar, description=f"count {model.name}")
            _fill(model.row, "exact", functools.partial(model_cost.exact_costs, model.path, model.value))
            progress.advance(bar)
        # Alone on the machine: emulation beside it would spoil every time.
        for model in found:
            progress.update(bar, description=f"time {model.name}")
            _fill(model.row, "x86", functools.partial(_x86, model, recipe))
            progress.advance(bar)
        progress.update(bar, description=f"time teacher {recipe.embed.teacher.name}")
        teachers = _teacher_rows(recipe)
        progress.advance(bar)
        _count_arm(recipe, found, counted, progress, bar)
        breakdown = None
        if bench.layers:
            progress.update(bar, description="layers")
            emulated = sorted({cpu for model in counted for cpu in model.row.get("arm", {})})
            breakdown = benchmark_layers.measure(found, emulated, recipe.paths.cache)
            progress.advance(bar)
    record = {
        "schema": "ossicle-benchmark/1",
        "recipe": recipe.name,
        "headline": recipe.headline,
        "window_seconds": recipe.embed.window_seconds,
        "machine": latency.processor(),
        "arm": _arm_versions(recipe),
        "provenance": artifact.provenance(),
        "rows": [*(model.row for model in found), *teachers],
    }
    # An older marker must not vouch for new figures if we are stopped between the two files.
    (folder / artifact.MARKER).unlink(missing_ok=True)
    benchmark_layers.remove(folder)
    if breakdown is not None:
        benchmark_layers.write(folder, breakdown)
    artifact.write_json(folder / RESULT, record)


def _fill(row: dict[str, Any], figure: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Add what ``measure`` returns to ``row``, or the reason why it could not."""
    try:
        row.update(measure())
    except OssicleError as error:
        row["not_measured"][figure] = reason(error)
    if row["kind"] == "frontend" and "executed_macs" in row:
        row["macs"], row["flops"] = row["executed_macs"], 2 * row["executed_macs"]


def _x86(model: Model, recipe: Recipe) -> dict[str, Any]:
    bench = recipe.benchmark
    record = model_cost.time_here(
        model.path, model.value, runs=bench.latency_runs, seconds=bench.latency_seconds
    )
    return {"x86": record}


def _teacher_rows(recipe: Recipe) -> list[dict[str, Any]]:
    name = recipe.embed.teacher.name
    shared: dict[str, Any] = {"precision": "fp32", "headline": False}
    unmeasured = dict.fromkeys(("exact", "arm"), "the teacher is not exported")
    try:
        teacher = load_teacher(recipe.embed.teacher, cache=recipe.paths.cache)
    except OssicleError as error:
        reasons = {**unmeasured, "macs": reason(error), "x86": reason(error)}
        return [{**shared, "kind": "teacher", "model": name, "not_measured": reasons}]
    bench = recipe.benchmark
    costs = teacher_costs(teacher, runs=bench.latency_runs, seconds=bench.latency_seconds)
    rows = []
    for part, found in costs.items():
        kind = "teacher" if part == "teacher" else "teacher_frontend"
        label = name if part == "teacher" else f"{name} frontend"
        found["flops"] = 2 * found["macs"]
        rows.append({**shared, "kind": kind, "model": label, **found, "not_measured": dict(unmeasured)})
    return rows


def _count_arm(
    recipe: Recipe, models: list[Model], counted: list[Model], progress: Progress, bar: Any
) -> None:
    for model in models:
        if model not in counted:
            why = NOT_FOR_ARM.get(model.row["precision"])
            model.row["not_measured"]["arm"] = why or "benchmark.arm is false"
    if not counted:
        return
    cache = recipe.paths.cache
    progress.update(
        bar, description="fetch the aarch64 root" if not arm_root.is_ready(cache) else "count on ARM"
    )
    try:
        arm_root.prepare(cache)
    except OssicleError as error:
        for model in counted:
            model.row["not_measured"]["arm"] = reason(error)
        progress.advance(bar, len(counted) * len(recipe.benchmark.arm_cpus))
        return
    for model in counted:
        model.row["arm"] = {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        futures = {
            pool.submit(arm.count, model.path, model.value, cpu, cache=cache): (model, cpu)
            for cpu in recipe.benchmark.arm_cpus
            for model in counted
        }
        try:
            for future in as_completed(futures):
                model, cpu = futures[future]
                try:
                    model.row["arm"][cpu] = asdict(future.result())
                except OssicleError as error:
                    model.row["not_measured"][f"arm {cpu}"] = reason(error)
                progress.update(bar, advance=1, description=f"{cpu} {model.name}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _arm_versions(recipe: Recipe) -> dict[str, Any] | None:
    if not recipe.benchmark.arm or not arm_root.is_ready(recipe.paths.cache):
        return None
    root = arm_root.prepare(recipe.paths.cache)
    processors = {cpu: asdict(arm_root.CPUS[cpu]) for cpu in recipe.benchmark.arm_cpus}
    return {
        "versions": arm_root.versions(), "packages": root.packages, "runs": 5, "statistic": "minimum",
        "processors": processors,
    }  # fmt: skip


def _arm_failure(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    wanted = [r for r in rows if r["kind"] == "student" and r["precision"] not in NOT_FOR_ARM]
    reasons = {r["not_measured"]["arm"] for r in wanted if "arm" in r["not_measured"]}
    return {"reasons": sorted(reasons), "cause": arm_root.missing()} if reasons else None


def _time_on_board(
    recipe: Recipe, runs: list[Run], folder: Path, host: str, console: Console
) -> dict[str, Any]:
    found = {model.name: model for model in models(recipe, runs)}
    files = {name: (model.path, model.value) for name, model in found.items()}
    bench = recipe.benchmark
    console.print(f"benchmark: timing {len(files)} files on {host}")
    board = remote.time_on_board(
        host, files, runs=bench.latency_runs, seconds=bench.latency_seconds, ssh_config=bench.ssh_config
    )
    for name, measured in board["models"].items():
        measured["file_sha256"] = artifact.file_digest(found[name].path)
    safe = "".join(c if c.isalnum() or c in ".-" else "-" for c in host.removeprefix("ssh://"))
    artifact.write_json(folder / f"board-{safe}.json", board)
    return board


def _read(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return record
