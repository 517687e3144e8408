"""``ossicle embed``: stage 1. Every window is decoded, rendered, heard by the teacher and stored, once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import artifact
from pipeline import manifest as manifests
from pipeline.config import Recipe
from pipeline.embedding import pool
from pipeline.embedding.shard import EmbedWork
from pipeline.embedding.worker import Message
from pipeline.store import schema
from pipeline.store.writer import StoreWriter, finished_arrays
from pipeline.teachers.base import Teacher
from pipeline.teachers.registry import build_teacher
from stages import locations


def run(recipe: Recipe, *, console: Console) -> Path:
    """Embed what is not embedded yet; committed shards are never computed again.

    ``RANK`` and ``WORLD_SIZE`` in the environment share the shards out between machines that see the same
    folder: shard s belongs to rank s mod world.

    Returns:
        The store's folder.

    Raises:
        MissingArtifactError: there is no manifest.
        WeightsError: the teacher's weights are not there.
        WorkerError: a worker process failed or kept dying.
    """
    folder = locations.store_folder(recipe)
    teacher = build_teacher(recipe.embed.teacher, cache=recipe.paths.cache)
    specs = array_specs(recipe, teacher)
    config, inputs = locations.store_config(recipe), locations.store_inputs(recipe)
    if artifact.is_finished(folder, artifact.identity("store", config, inputs)) and _holds(folder, specs):
        console.print(f"embed: reused {folder}")
        return folder
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    with created_store(recipe, specs) as writer:
        digests = tuple(spec.digest for spec in specs)
        shards = writer.pending(digests, rank, world)
        if shards:
            _embed(recipe, writer, digests, shards, console)
        left = writer.pending(digests)
        if left and world > 1:
            console.print(f"embed: rank {rank} of {world} is done; {len(left)} shards of others are pending")
            return folder
        summary: dict[str, Any] = {"teacher": {"name": teacher.name, "citation": teacher.citation}}
        if recipe.embed.spectrogram_dtype == "uint8":
            summary["uint8_loss"] = quantisation_loss(embed_work(recipe, writer, digests), specs[0], writer)
            console.print(f"embed: loss of 8-bit spectrograms: {_loss(summary['uint8_loss'])}")
        finished = writer.finish(digests, config=config, inputs=inputs, summary=summary)
    console.print(
        f"embed: {finished.summary['ok']} windows, {finished.summary['rejected']} rejected"
        f"{_reasons(folder)}; in {folder}"
    )
    return folder


def array_specs(recipe: Recipe, teacher: Teacher) -> list[schema.ArraySpec]:
    """Return the two arrays that a recipe asks of its store: spectrogram first, then embedding."""
    from pipeline.audio.windows import frame_count

    embed = recipe.embed
    samples = frame_count(embed.window_seconds, embed.frontend.sample_rate_hz)
    config = {
        "sample_rate_hz": teacher.sample_rate_hz,
        "window_samples": teacher.window_samples,
        "citation": teacher.citation,
    }
    return [
        schema.spectrogram_spec(embed.frontend, embed.frontend.frames(samples), embed.spectrogram_dtype),
        schema.embedding_spec(
            teacher.name,
            teacher.digest(),
            teacher.embedding_dim,
            embed.embedding_dtype,
            config,
            teacher.licence,
        ),
    ]


def quantisation_loss(work: EmbedWork, spec: schema.ArraySpec, writer: StoreWriter) -> dict[str, float]:
    """Return what 8-bit codes lost, measured: the first batch's log-mels made anew against those stored.

    Returns:
        ``rms_error`` and ``largest_error`` in units of the log-mel, and ``snr_db``: how far ``rms_error`` is
        below the log-mel's own deviation.
    """
    from pipeline.embedding.shard import ShardArrays, ShardRenderer
    from pipeline.frontends.log_mel import LogMel
    from pipeline.store.quantisation import dequantise
    from pipeline.store.zarr_layout import open_array

    made = ShardArrays(0, [spec], writer, None, LogMel(work.embed.frontend).eval())
    batch = next(ShardRenderer(work, writer, 0).batches(0, [spec]))
    made.add(batch)
    group = writer.folder / spec.path
    codes, scale, offset = (
        np.asarray(open_array(group / name)[: batch.rows]) for name in (spec.data_name, "scale", "offset")
    )
    good = np.isfinite(scale)
    exact = made.arrays[spec.path][: batch.rows][good]
    if not exact.size:
        return {}
    error = dequantise(codes[good], scale[good], offset[good]).astype(np.float64) - exact
    rms = float(np.sqrt(np.mean(error**2)))
    snr_db = float(20 * np.log10(exact.std() / rms)) if rms > 0 else float("inf")
    return {"rms_error": rms, "largest_error": float(np.abs(error).max()), "snr_db": snr_db}


def _holds(folder: Path, specs: list[schema.ArraySpec]) -> bool:
    finished = finished_arrays(folder)
    known = {spec.path: spec.dtype for spec in schema.read_meta(folder).arrays if spec.path in finished}
    return all(known.get(spec.path) == spec.dtype for spec in specs)


@contextmanager
def created_store(recipe: Recipe, specs: list[schema.ArraySpec]) -> Iterator[StoreWriter]:
    """Give the recipe's store, planned and described, open for writing; what it holds already stays."""
    from pipeline.audio import plan

    manifest = manifests.read(locations.manifest_folder(recipe))
    rows = plan.build(manifest.frame, recipe.embed, recipe.manifest)
    meta = schema.StoreMeta(
        name=recipe.name,
        manifest_digest=manifest.digest,
        windowing=locations.store_config(recipe),
        shard_rows=recipe.embed.shard_rows,
        chunk_rows=recipe.embed.chunk_rows,
        arrays=tuple(specs),
    )
    rejects = manifest.folder / "rejects.parquet"
    table = pd.read_parquet(rejects) if rejects.is_file() else None
    with StoreWriter.create(locations.store_folder(recipe), rows, meta, table) as writer:
        yield writer


def _embed(
    recipe: Recipe, writer: StoreWriter, digests: tuple[str, ...], shards: list[int], console: Console
) -> None:
    work = embed_work(recipe, writer, digests)
    total = sum(stop - start for start, stop in map(writer.meta.bounds, shards))
    workers = pool.worker_count(recipe.embed.workers, len(shards), recipe.embed.teacher.device)
    kept = writer.meta.rows - total
    if kept:
        console.print(f"embed: {kept} of {writer.meta.rows} windows are there already")
    columns = (
        TextColumn("embed"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("embed", total=total, rate="starting workers")
        pace = _Pace(recipe.embed.window_seconds)

        def show(message: Message) -> None:
            if message.kind == "ready":
                pace.ready()
            elif message.kind == "rows":
                pace.rows += message.rows
                progress.update(bar, advance=message.rows, rate=str(pace))

        pool.embed_shards(work, shards, workers, show)
    console.print(f"embed: {pace.rows} windows by {workers} workers, {pace}")


def embed_work(recipe: Recipe, writer: StoreWriter, digests: tuple[str, ...]) -> EmbedWork:
    """Return what the worker processes need to know."""
    return EmbedWork(
        store=writer.folder.resolve(),
        manifest=locations.manifest_folder(recipe).resolve(),
        embed=recipe.embed,
        peak_floor=recipe.manifest.peak_floor,
        cache=recipe.paths.cache,
        digests=digests,
    )


def _loss(loss: dict[str, float]) -> str:
    if not loss:
        return "not measured, every row of the first batch was rejected"
    rms, largest = loss["rms_error"], loss["largest_error"]
    return f"{rms:.2g} rms, at most {largest:.2g}, {loss['snr_db']:.1f} dB below the log-mel's own deviation"


class _Pace:
    """Windows a second since the first worker could start."""

    def __init__(self, window_seconds: float) -> None:
        self.window_seconds, self.rows, self.started = window_seconds, 0, 0.0

    def ready(self) -> None:
        self.started = self.started or time.monotonic()

    def __str__(self) -> str:
        rate = self.rows / max(time.monotonic() - self.started, 1e-3)
        return f"{rate:.1f} clips/s, {rate * self.window_seconds:.0f} x realtime"


def _reasons(folder: Path) -> str:
    from pipeline.store import tables

    rejects = tables.read(folder / schema.REJECTS_FILE)
    counts = rejects["reason"][rejects["row"] != schema.NO_ROW].value_counts().sort_index()
    return f" ({', '.join(f'{count} {reason}' for reason, count in counts.items())})" if len(counts) else ""
