"""``ossicle export``: trained students as ONNX and int8 files, each loaded, run and compared with torch."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.deploy.bundle import Job, export_run
from pipeline.recipe import Run
from stages import locations
from stages.console import progress_bar
from stages.run_choice import chosen_students, trained_runs


def run(recipe: Recipe, *, console: Console, only: Sequence[str] = ()) -> Path:
    """Export every finished run that is no control, several at a time; finished exports are reused.

    Args:
        recipe: its ``export`` section says how; ``jobs`` says how many processes.
        console: for the bar and the table.
        only: run names or labels (``name-seed0``); controls are exported when named here.

    Returns:
        The folder of the headline run's export, or of the first.

    Raises:
        ConfigError: ``only`` names no run.
        MissingArtifactError: none of the chosen runs is trained yet.
        ParityError: an exported file differs from torch.
    """
    chosen = chosen_students(recipe, only, "export")
    finished = trained_runs(chosen, recipe, "export", "export", console)
    jobs = {r.label: _job(r) for r in finished}
    done = {label: job.folder for label, job in jobs.items() if _is_exported(job)}
    if done:
        console.print(f"export: {len(done)} of {len(jobs)} reused from {locations.root(recipe) / 'export'}")
    _export([job for label, job in jobs.items() if label not in done], recipe, console)
    summaries = {label: artifact.read(job.folder).summary for label, job in jobs.items()}
    console.print(_table(summaries))
    for label, summary in summaries.items():
        quantised = summary["int8"]
        if quantised is not None and summary.get("ship", {}).get("file_bytes") == "fp32":
            console.print(
                f"export: {label}: ship float32: int8 keeps {_kept(quantised)} of it on held-out rows"
            )
        if "stream" in summary:
            timing = summary["stream"]["timing"]
            console.print(
                f"export: {label} streams: an embedding every {timing['step_ms']:.0f} ms, algorithmic latency "
                f"{timing['algorithmic_ms']:.0f} to {timing['longest_ms']:.0f} ms, "
                f"{summary['stream']['state_bytes']:,} bytes carried"
            )
    first = next((r for r in finished if r.name == recipe.headline), finished[0])
    return jobs[first.label].folder


def _job(run: Run) -> Job:
    trained = run.recipe.export.int8 and run.recipe.export.int8_method == "qat"
    return Job(
        label=run.label,
        run_folder=locations.run_folder(run),
        store_folder=locations.store_folder(run.recipe),
        folder=locations.export_folder(run),
        settings=run.recipe.export,
        config=locations.export_config(run),
        inputs=locations.export_inputs(run),
        trained=locations.qat_folder(run) if trained else None,
    )


def _is_exported(job: Job) -> bool:
    return artifact.is_finished(job.folder, artifact.identity("export", job.config, job.inputs))


def _export(jobs: list[Job], recipe: Recipe, console: Console) -> None:
    with progress_bar(console) as progress:
        bar = progress.add_task("export", total=len(jobs))
        for summary in _summaries(jobs, recipe.jobs or os.cpu_count() or 1):
            progress.update(bar, advance=1, description=f"export {summary['label']}")


def _summaries(jobs: list[Job], processes: int) -> Iterator[dict[str, Any]]:
    if min(len(jobs), processes) <= 1:
        yield from map(export_run, jobs)
        return
    # The exporter holds the interpreter's lock and keeps global state: processes, started fresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(jobs), processes), mp_context=context) as pool:
        futures = [pool.submit(export_run, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _table(summaries: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="exported students", title_justify="left")
    table.add_column("run")
    headings = (
        "parameters",
        "fp32 KB",
        "int8 KB",
        "parity fp32",
        "int8 centred cosine",
        "overlap",
        "layers in float",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for label, summary in summaries.items():
        quantised = summary["int8"]
        table.add_row(
            label,
            f"{summary['parameters']:,}",
            f"{summary['fp32_bytes'] / 1024:,.0f}",
            "-" if quantised is None else f"{quantised['file_bytes'] / 1024:,.0f}",
            f"{summary['parity_worst_relative']:.1e}",
            "-" if quantised is None else f"{quantised['centred_cosine']:.4f}",
            _overlap(quantised),
            "-" if quantised is None else _left_in_float(quantised),
        )
    return table


def _overlap(quantised: dict[str, Any] | None) -> str:
    # Exports of earlier versions are reused, and did not measure it.
    found = None if quantised is None else quantised.get("neighbour_overlap")
    return "-" if found is None else f"{found:.3f}"


def _kept(quantised: dict[str, Any]) -> str:
    cosine, overlap = quantised["centred_cosine"], quantised["neighbour_overlap"]
    dropped = quantised["probe_drop"]
    probe = "" if dropped is None else f", a probe {-dropped:+.3f}"
    return f"centred cosine {cosine:.4f}, neighbour overlap {overlap:.3f}{probe}"


def _left_in_float(quantised: dict[str, Any]) -> str:
    note = "" if quantised["ops"] == "all" else " + all but conv, matmul"
    return f"{len(quantised['kept_float'])}{note}"
