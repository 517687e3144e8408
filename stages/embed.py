"""``ossicle embed``: stage 1. Every window is decoded, rendered, heard by the teacher and stored, once."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

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
from pipeline.errors import ConfigError
from pipeline.ranks import Rank
from pipeline.store import schema
from pipeline.store.commits import finished_arrays, is_finished
from pipeline.store.location import Place, at
from pipeline.store.writer import StoreWriter
from stages import locations

Engine = Literal["local", "ray"]
ENGINES = {"local": "pipeline.embedding.pool", "ray": "pipeline.embedding.ray_engine"}


def run(recipe: Recipe, *, console: Console, engine: Engine = "local") -> Place:
    """Embed what is not embedded yet; committed shards are never computed again.

    The ranks of torchrun and Slurm share the shards out between machines that see the same folder: shard s
    belongs to rank s mod world, and the rank that finds all of them committed finishes the store.

    Args:
        recipe: whose store.
        console: told of progress.
        engine: ``local``, processes of this machine, or ``ray``, actors of a cluster; the bytes are the same.

    Returns:
        The store's folder, or its URL.

    Raises:
        MissingArtifactError: there is no manifest.
        WeightsError: the teacher's weights are not there.
        WorkerError: a worker process failed or kept dying.
        ConfigError: ranks that cannot be, or Ray inside of several ranks.
    """
    ranks = _ranks(engine)
    folder = locations.store_folder(recipe)
    made_by, teachers = planned_arrays(recipe)
    specs = [spec for specs in made_by for spec in specs]
    config, inputs = locations.store_config(recipe), locations.store_inputs(recipe)
    asked = asked_teachers(recipe, made_by)
    if is_finished(folder, artifact.identity("store", config, inputs)) and _holds(folder, specs, asked):
        console.print(f"embed: reused {folder}")
        return folder
    with created_store(recipe, specs, asked) as writer:
        digests = tuple(spec.digest for spec in specs)
        work = embed_work(recipe, writer, made_by)
        shards = writer.pending(digests, ranks.rank, ranks.world)
        if shards:
            _embed(writer, work, shards, ranks, engine, console)
        left = writer.pending(digests)
        if left and ranks.world > 1:
            console.print(
                f"embed: rank {ranks.rank} of {ranks.world} is done; {len(left)} shards of others are pending"
            )
            return folder
        summary: dict[str, Any] = {"teachers": teachers}
        if recipe.embed.spectrogram_dtype == "uint8":
            summary["uint8_loss"] = quantisation_loss(work, specs[0], writer)
            console.print(f"embed: loss of 8-bit spectrograms: {_loss(summary['uint8_loss'])}")
        finished = writer.finish(digests, config=config, inputs=inputs, summary=summary)
    console.print(
        f"embed: {finished.summary['ok']} windows, {finished.summary['rejected']} rejected"
        f"{_reasons(folder)}; in {folder}"
    )
    return folder


Planned = tuple[tuple[schema.ArraySpec, ...], ...]


def planned_arrays(recipe: Recipe) -> tuple[Planned, dict[str, str]]:
    """Return the arrays that each frontend and each teacher of a recipe makes, and the teachers' citations.

    The teachers are built, so that whatever is wrong with them stops the run before any work, and let go.
    """
    from pipeline.embedding.array_makers import TeacherMaker, build_makers

    makers = [maker for maker in build_makers(recipe.embed, recipe.paths.cache) if maker is not None]
    cited = {m.teacher.name: m.teacher.citation for m in makers if isinstance(m, TeacherMaker)}
    return tuple(maker.specs for maker in makers), cited


def quantisation_loss(work: EmbedWork, spec: schema.ArraySpec, writer: StoreWriter) -> dict[str, float]:
    """Return what 8-bit codes lost, measured: the first batch's log-mels made anew against those stored.

    Returns:
        ``rms_error`` and ``largest_error`` in units of the log-mel, and ``snr_db``: how far ``rms_error`` is
        below the log-mel's own deviation.
    """
    from pipeline.embedding.array_makers import SpectrogramMaker
    from pipeline.embedding.shard import ShardArrays, ShardRenderer
    from pipeline.store.quantisation import dequantise
    from pipeline.store.zarr_layout import ShardDecoder, members, shard_file

    maker = SpectrogramMaker(work.embed.frontend, work.embed)
    made = ShardArrays(0, [spec], writer, [maker])
    batch = next(ShardRenderer(work, writer).batches(0, [maker.sample_rate_hz]))
    made.add(batch)
    start, stop = writer.meta.bounds(0)
    codes, scale, offset = (
        ShardDecoder(writer.location.read(f"{spec.path}/{name}/zarr.json")).decode(
            0, start, stop, writer.location.read(shard_file(spec, name, 0))
        )[: batch.rows]
        for name in members(spec)
    )
    good = np.isfinite(scale)
    exact = made.arrays[spec.path][: batch.rows][good]
    if not exact.size:
        return {}
    error = dequantise(codes[good], scale[good], offset[good]).astype(np.float64) - exact
    rms = float(np.sqrt(np.mean(error**2)))
    snr_db = float(20 * np.log10(exact.std() / rms)) if rms > 0 else float("inf")
    return {"rms_error": rms, "largest_error": float(np.abs(error).max()), "snr_db": snr_db}


def asked_teachers(recipe: Recipe, planned: Planned) -> dict[str, str]:
    """Return digest of what the recipe says of each teacher to the digest of the teacher that was built."""
    of_teachers = planned[len(recipe.embed.all_frontends) :]
    return {
        schema.asked_digest(teacher): specs[0].teacher_digest
        for teacher, specs in zip(recipe.embed.all_teachers, of_teachers, strict=True)
    }


def _holds(place: Place, specs: list[schema.ArraySpec], asked: dict[str, str]) -> bool:
    finished, meta = finished_arrays(place), schema.read_meta(place)
    known = {spec.path: spec.dtype for spec in meta.arrays if spec.path in finished}
    return asked.items() <= meta.asked.items() and all(known.get(s.path) == s.dtype for s in specs)


@contextmanager
def created_store(
    recipe: Recipe, specs: list[schema.ArraySpec], asked: dict[str, str] | None = None
) -> Iterator[StoreWriter]:
    """Give the recipe's store, planned and described, open for writing; what it holds already stays."""
    from pipeline.audio import plan, render
    from pipeline.embedding.exactness import with_agreement

    manifest = manifests.read(locations.manifest_folder(recipe))
    others = render.background_manifest(recipe.embed.views)
    devices = render.device_responses(recipe.embed.views)
    rows = plan.build(
        manifest.frame,
        recipe.embed,
        recipe.manifest,
        others=others.frame if others is not None else None,
        devices=devices.responses if devices is not None else (),
    )
    place = locations.store_folder(recipe)
    begun = at(place).size(schema.STORE_FILE) is not None
    known = {spec.digest for spec in schema.read_meta(place).arrays} if begun else set()
    renderer = render.Renderer.of(manifest, recipe.embed, recipe.manifest.peak_floor)
    specs = with_agreement(specs, recipe.embed, rows, renderer, known, recipe.paths.cache)
    meta = schema.StoreMeta(
        name=recipe.name,
        manifest_digest=manifest.digest,
        windowing=locations.store_config(recipe),
        shard_rows=recipe.embed.shard_rows,
        chunk_rows=recipe.embed.chunk_rows,
        arrays=tuple(specs),
        asked=asked or {},
    )
    rejects = manifest.folder / "rejects.parquet"
    table = pd.read_parquet(rejects) if rejects.is_file() else None
    with StoreWriter.create(place, rows, meta, table) as writer:
        yield writer


def _ranks(engine: Engine) -> Rank:
    ranks = Rank.of_environment()
    if engine not in ENGINES:
        raise ConfigError("no such engine", expected="local or ray", got=engine)
    if engine == "ray" and ranks.world > 1:
        raise ConfigError(
            "Ray shares the shards out itself; it does not run inside of several ranks",
            got=f"rank {ranks.rank} of {ranks.world} in the environment",
            run="ossicle embed --engine ray once, or the ranks with --engine local",
        )
    return ranks


def _embed(
    writer: StoreWriter, work: EmbedWork, shards: list[int], ranks: Rank, engine: Engine, console: Console
) -> None:
    total = sum(stop - start for start, stop in map(writer.meta.bounds, shards))
    workers, device = work.embed.workers, work.embed.teacher.device
    if engine == "local":
        workers = pool.worker_count(workers, len(shards), device, ranks.local_world)
        if ranks.local_world > 1:
            work = replace(work, embed=pool.on_gpu(work.embed, ranks.local_rank % pool.gpu_count()))
    kept = writer.meta.rows - total
    if kept and ranks.world == 1:
        console.print(f"embed: {kept} of {writer.meta.rows} windows are there already")
    columns = (
        TextColumn("embed"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("embed", total=total, rate="starting workers")
        pace = _Pace(work.embed.window_seconds)

        def show(message: Message) -> None:
            if message.kind == "ready":
                pace.ready()
            elif message.kind == "rows":
                pace.rows += message.rows
                progress.update(bar, advance=message.rows, rate=str(pace))

        importlib.import_module(ENGINES[engine]).embed_shards(work, shards, workers, show)
    by = f"{workers} workers" if engine == "local" else "Ray's actors"
    console.print(f"embed: {pace.rows} windows by {by}, {pace}")


def embed_work(recipe: Recipe, writer: StoreWriter, planned: Planned) -> EmbedWork:
    """Return what the worker processes need to know."""
    return EmbedWork(
        store=str(writer.location) if writer.location.remote else writer.folder.resolve(),
        manifest=locations.manifest_folder(recipe).resolve(),
        embed=recipe.embed,
        peak_floor=recipe.manifest.peak_floor,
        cache=recipe.paths.cache,
        digests=tuple(spec.digest for specs in planned for spec in specs),
        makers=tuple(tuple(spec.digest for spec in specs) for specs in planned),
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


def _reasons(place: Place) -> str:
    from pipeline.store import tables

    rejects = tables.load(place, schema.REJECTS_FILE)
    counts = rejects["reason"][rejects["row"] != schema.NO_ROW].value_counts().sort_index()
    return f" ({', '.join(f'{count} {reason}' for reason, count in counts.items())})" if len(counts) else ""
