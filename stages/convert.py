"""``ossicle convert``: exported students for LiteRT, Ethos-U NPUs and ExecuTorch, each compared with the float file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline import artifact
from pipeline.config import ExportConfig
from pipeline.deploy.runtimes.conversion import ConversionJob, convert_run
from pipeline.deploy.runtimes.environment import EXECUTORCH, is_ready, prepare
from pipeline.deploy.runtimes.targets import Target
from pipeline.measure.arm_root import default_cache
from pipeline.store.location import Place
from stages import locations, run_records
from stages.run_records import RunRecords

# Every converted file is written by code of this number; a change of what is written raises it.
CODE = 1


def run(
    name: str,
    *,
    console: Console,
    to: Sequence[str],
    store: str | None = None,
    held_out_clips: int = 256,
    system_config: str | None = None,
    memory_mode: str | None = None,
) -> Path:
    """Convert one exported run; what was converted before is reused.

    Args:
        name: a run's or an export's folder.
        console: for progress and the table.
        to: names of targets.
        store: where the run's store is, if not among the artifacts.
        held_out_clips: rows that each file is compared with float32 on.
        system_config: Vela's name of clock and memories.
        memory_mode: Vela's memory mode.

    Returns:
        The folder of the last target's files.

    Raises:
        MissingArtifactError: no such run, it is not exported, or its store is not there.
        UnknownNameError: no such target.
        MissingDependencyError: an environment cannot be built, or an extra is not installed.
        ParityError: a file does not compute what its ONNX file does.
        OssicleError: the student has an operator that the target lacks.
    """
    targets = [Target(target, system_config, memory_mode) for target in to]
    records = run_records.find(name)
    place = run_records.store_of(records, None if store is None else locations.place_of(store))
    python = _python(targets, console)
    jobs = [_job(records, target, place, held_out_clips, python) for target in targets]
    summaries = []
    for job in jobs:
        if not artifact.is_finished(job.folder, artifact.identity("runtime", job.config, job.inputs)):
            with console.status(f"{job.label} for {job.target.name}"):
                convert_run(job)
        summaries.append(artifact.read(job.folder).summary)
    console.print(_table(summaries))
    for line in _remarks(summaries):
        console.print(f"convert: {line}")
    return jobs[-1].folder


def build_environments(to: Sequence[str], *, console: Console) -> str:
    """Build what the targets need beyond the extras of this distribution; return what is there now."""
    python = _python([Target(target) for target in to], console)
    return "these targets need no environment of their own" if python is None else str(python.parent.parent)


def _python(targets: Sequence[Target], console: Console) -> Path | None:
    if not any(target.needs_executorch for target in targets):
        return None
    cache = default_cache()
    if is_ready(EXECUTORCH, cache):
        return prepare(EXECUTORCH, cache, console.print)
    with console.status("building the environment of ExecuTorch"):
        return prepare(EXECUTORCH, cache, lambda line: console.print(f"convert: {line}"))


def _job(
    records: RunRecords, target: Target, place: Place, held_out_clips: int, python: Path | None
) -> ConversionJob:
    export = records.export
    settings = ExportConfig.model_validate(export.config["export"])
    config = {
        "target": target.name,
        "system": target.system,
        "calibration_clips": settings.calibration_clips,
        "held_out_clips": held_out_clips,
        "environment": EXECUTORCH.digest if target.needs_executorch else None,
        "code": CODE,
    }
    inputs = {"export": export.digest}
    work = artifact.identity("runtime", config, inputs)
    return ConversionJob(
        label=records.label,
        target=target,
        export_folder=export.folder,
        store_folder=place,
        folder=artifact.folder_for(records.root, "runtime", f"{records.label}.{target.name}", work),
        calibration_clips=settings.calibration_clips,
        held_out_clips=held_out_clips,
        tolerance=settings.parity_atol,
        config=config,
        inputs=inputs,
        python=python,
    )


def _table(summaries: list[dict[str, Any]]) -> Table:
    table = Table(title="other runtimes; NPU figures are Vela's estimates", title_justify="left")
    for heading in ("run", "target", "file"):
        table.add_column(heading)
    for heading in ("KB", "centred cosine", "neighbours", "cycles", "ms", "SRAM KB", "flash KB", "on CPU"):
        table.add_column(heading, justify="right")
    for summary in summaries:
        for entry in summary["files"]:
            likeness, npu = entry["to_fp32"], entry.get("estimate")
            table.add_row(
                summary["label"],
                summary["target"],
                entry["file"],
                f"{entry['bytes'] / 1024:,.0f}",
                f"{likeness['centred_cosine']:.4f}",
                f"{likeness['neighbour_overlap']:.3f}",
                *(_cost(npu) if npu else ("-",) * 5),
            )
    return table


def _cost(npu: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{npu['cycles']:,}",
        f"{npu['milliseconds']:.2f}",
        f"{npu['sram_bytes'] / 1024:,.0f}",
        f"{(npu['flash_bytes'] or npu['dram_bytes']) / 1024:,.0f}",
        str(npu["cpu_operators"]),
    )


def _remarks(summaries: list[dict[str, Any]]) -> Iterator[str]:
    for summary in summaries:
        for entry in summary["files"]:
            name = f"{summary['label']} for {summary['target']}: {entry['file']}"
            nodes = entry.get("float_nodes") or []
            if "estimate" in entry and nodes:
                yield f"{name}: {len(nodes)} nodes compute in float on the CPU, the first {nodes[0]}"
            if "ethos" in summary["target"] and "estimate" not in entry:
                yield f"{name} is in {entry['delegates']} pieces on the NPU: no estimate of the whole"
            if entry.get("left"):
                left = ", ".join(f"{number} {operator}" for operator, number in entry["left"].items())
                yield f"{name} leaves to portable kernels: {left}"
            if entry.get("to_onnx_int8", {}).get("greatest_steps") is not None:
                twin = entry["to_onnx_int8"]
                yield (
                    f"{name}: {twin['share_equal']:.1%} of its numbers equal the int8 ONNX file's, "
                    f"none differs by more than {twin['greatest_steps']} steps"
                )
