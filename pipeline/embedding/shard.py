"""One shard of stage 1: its rows rendered in batches, its arrays computed. No processes, no queues."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import manifest
from pipeline.audio import resampling
from pipeline.audio.plan import SAMPLE_RATE_HZ
from pipeline.audio.render import RENDERED_COLUMNS, Renderer
from pipeline.audio.windows import fit, frame_count
from pipeline.config import EmbedConfig
from pipeline.embedding.array_makers import ArrayMaker
from pipeline.store import encoding
from pipeline.store.location import Place
from pipeline.store.schema import ArraySpec
from pipeline.store.writer import StoreWriter


@dataclass(frozen=True)
class EmbedWork:
    """What a worker needs to know; it crosses process borders.

    Attributes:
        store: the store's folder or URL, created.
        manifest: the manifest's folder.
        embed: stage 1's configuration.
        peak_floor: windows whose peak is below are rejected as silence.
        cache: folder of downloads, where the teachers' weights are.
        digests: the arrays wanted, by digest.
        makers: digests of the arrays that each of the recipe's makers makes (see ``build_makers``).
    """

    store: Place
    manifest: Path
    embed: EmbedConfig
    peak_floor: float
    cache: Path | None
    digests: tuple[str, ...]
    makers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class RenderedBatch:
    """Consecutive rows of a shard, rendered.

    Attributes:
        shard: the shard; ``first`` and ``rows`` place the batch in it.
        waves: sample rate in Hz to (rows, samples) float32, one entry a rate that a wanted array needs.
        rejects: what could not be rendered; those rows are zeros here and missing in the store.
        last: whether the shard ends here.
    """

    shard: int
    first: int
    rows: int
    waves: dict[int, np.ndarray]
    rejects: tuple[dict[str, Any], ...]
    last: bool


def rates_of(specs: Sequence[ArraySpec], makers: Sequence[ArrayMaker | None]) -> list[int]:
    """Return the sample rates in Hz at which ``specs`` are made, each once."""
    wanted = {spec.path for spec in specs}
    return sorted(
        {
            maker.sample_rate_hz
            for maker in makers
            if maker is not None and wanted & {spec.path for spec in maker.specs}
        }
    )


def wanted_specs(work: EmbedWork, writer: StoreWriter, shard: int) -> list[ArraySpec]:
    """Return the wanted arrays that ``shard`` lacks: what is committed is never computed again."""
    specs = [spec for spec in writer.meta.arrays if spec.digest in work.digests]
    return [spec for spec in specs if not writer.is_committed(spec, shard)]


class ShardRenderer:
    """Turns a shard's rows into batches of waveforms.

    Args:
        work: what is to be done.
        writer: the open store, whose rows are the plan.
    """

    def __init__(self, work: EmbedWork, writer: StoreWriter) -> None:
        self.work, self.writer = work, writer
        self.renderer = Renderer.of(manifest.read(work.manifest), work.embed, work.peak_floor)

    def batches(self, shard: int, rates_hz: Collection[int]) -> Iterator[RenderedBatch]:
        """Yield the batches of ``shard`` at those sample rates, cut every ``batch_size`` rows.

        Whatever was rejected: a batch's size can change the last bits of what a model gives, so it depends on
        the shard alone.
        """
        start, stop = self.writer.meta.bounds(shard)
        size = self.work.embed.teacher.batch_size
        seconds = self.work.embed.window_seconds
        for first in range(start, stop, size):
            rows = self._plan(first, min(first + size, stop))
            rendered = np.zeros((len(rows), frame_count(seconds, SAMPLE_RATE_HZ)), dtype=np.float32)
            rejects = []
            for position, row in enumerate(rows):
                wave, reject = self.renderer.attempt(row)
                if wave is None:
                    rejects.append(reject or {})
                else:
                    rendered[position] = fit(wave, rendered.shape[1])
            waves = {
                rate: resampling.resample_rows(rendered, SAMPLE_RATE_HZ, rate, frame_count(seconds, rate))
                for rate in rates_hz
            }
            yield RenderedBatch(
                shard, first - start, len(rows), waves, tuple(rejects), last=first + size >= stop
            )

    def _plan(self, first: int, stop: int) -> list[dict[str, Any]]:
        """Return those rows of the plan, with the columns that rendering reads."""
        rows = self.writer.rows.iloc[first:stop]
        columns = [column for column in RENDERED_COLUMNS if column in rows]
        values = zip(*(rows[column].tolist() for column in columns), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in values]


class ShardArrays:
    """Computes and collects the arrays of one shard, batch by batch.

    Args:
        shard: which.
        specs: the arrays to make.
        writer: the open store.
        makers: what makes them; None where none of its arrays is wanted.
    """

    def __init__(
        self,
        shard: int,
        specs: Sequence[ArraySpec],
        writer: StoreWriter,
        makers: Sequence[ArrayMaker | None],
    ) -> None:
        self.shard = shard
        self.start, stop = writer.meta.bounds(shard)
        self._specs = {spec.path: spec for spec in specs}
        self._makers, self._plan = makers, writer.rows
        self.arrays = {
            spec.path: np.full((stop - self.start, *spec.row_shape), np.nan, dtype=np.float32)
            for spec in specs
        }
        self.rejects: dict[int, dict[str, Any]] = {}

    def add(self, batch: RenderedBatch) -> None:
        """Compute the arrays of one batch."""
        rows = slice(batch.first, batch.first + batch.rows)
        self.rejects |= {reject["row"]: reject for reject in batch.rejects}
        for maker in self._makers:
            wanted = {spec.path for spec in maker.specs} & self._specs.keys() if maker is not None else None
            if maker is None or not wanted:
                continue
            made = maker.make(torch.from_numpy(batch.waves[maker.sample_rate_hz]), wanted)
            for path, values in made.items():
                self.arrays[path][rows] = values
                self._reject_non_finite(self._specs[path], values, batch.first)

    def _reject_non_finite(self, spec: ArraySpec, values: np.ndarray, first: int) -> None:
        for position in np.flatnonzero(~encoding.finite_rows(spec, values)):
            row = self.start + first + int(position)
            problem = f"the {spec.kind} of {spec.name} is not finite as {spec.dtype}"
            clip = str(self._plan["clip_id"].iloc[row])
            reject = {"row": row, "clip_id": clip, "path": "", "reason": f"non_finite_{spec.kind}"}
            self.rejects.setdefault(row, {**reject, "problem": problem})
