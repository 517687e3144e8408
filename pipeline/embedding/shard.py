"""One shard of stage 1: its rows rendered in batches, its arrays computed. No processes, no queues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import manifest
from pipeline.audio import decode
from pipeline.audio.plan import SAMPLE_RATE_HZ
from pipeline.audio.render import ClipReader, Renderer
from pipeline.audio.windows import fit, frame_count
from pipeline.config import EmbedConfig
from pipeline.frontends.log_mel import LogMel
from pipeline.store.schema import ArraySpec
from pipeline.store.writer import StoreWriter
from pipeline.teachers.base import Teacher


@dataclass(frozen=True)
class EmbedWork:
    """What a worker needs to know; it crosses process borders.

    Attributes:
        store: the store's folder, created.
        manifest: the manifest's folder.
        embed: stage 1's configuration.
        peak_floor: windows whose peak is below are rejected as silence.
        cache: folder of downloads, where the teacher's weights are.
        digests: the arrays wanted, by digest.
    """

    store: Path
    manifest: Path
    embed: EmbedConfig
    peak_floor: float
    cache: Path | None
    digests: tuple[str, ...]


@dataclass(frozen=True)
class RenderedBatch:
    """Consecutive rows of a shard, rendered.

    Attributes:
        shard: the shard; ``first`` and ``rows`` place the batch in it.
        teacher_waves: (rows, samples) at the teacher's rate, or None where no embedding is wanted.
        student_waves: (rows, samples) at the frontend's rate, or None where no spectrogram is wanted.
        rejects: what could not be rendered; those rows are zeros here and missing in the store.
        last: whether the shard ends here.
    """

    shard: int
    first: int
    rows: int
    teacher_waves: np.ndarray | None
    student_waves: np.ndarray | None
    rejects: tuple[dict[str, Any], ...]
    last: bool


def wanted_specs(work: EmbedWork, writer: StoreWriter, shard: int) -> list[ArraySpec]:
    """Return the wanted arrays that ``shard`` lacks: what is committed is never computed again."""
    specs = [spec for spec in writer.meta.arrays if spec.digest in work.digests]
    return [spec for spec in specs if not writer.is_committed(spec, shard)]


class ShardRenderer:
    """Turns a shard's rows into batches of waveforms.

    Args:
        work: what is to be done.
        writer: the open store, whose rows are the plan.
        teacher_rate_hz: the teacher's sample rate.
    """

    def __init__(self, work: EmbedWork, writer: StoreWriter, teacher_rate_hz: int) -> None:
        self.work, self.writer, self.teacher_rate_hz = work, writer, teacher_rate_hz
        clips = ClipReader(manifest.read(work.manifest), work.embed.window_seconds, work.peak_floor)
        self.renderer = Renderer(clips, work.embed.views)

    def batches(self, shard: int, specs: list[ArraySpec]) -> Iterator[RenderedBatch]:
        """Yield the batches of ``shard``, cut every ``batch_size`` rows whatever was rejected.

        A batch's size can change the last bits of what a model gives, so it depends on the shard alone.
        """
        start, stop = self.writer.meta.bounds(shard)
        size = self.work.embed.teacher.batch_size
        kinds = {spec.kind for spec in specs}
        for first in range(start, stop, size):
            rows = self.writer.rows.iloc[first : min(first + size, stop)].to_dict("records")
            teacher = self._zeros(len(rows), self.teacher_rate_hz) if "embedding" in kinds else None
            rate = self.work.embed.frontend.sample_rate_hz
            student = self._zeros(len(rows), rate) if "spectrogram" in kinds else None
            rejects = []
            for position, row in enumerate(rows):
                wave, reject = self.renderer.attempt({str(key): value for key, value in row.items()})
                if wave is None:
                    rejects.append(reject or {})
                    continue
                for waves, wave_rate in ((teacher, self.teacher_rate_hz), (student, rate)):
                    if waves is not None:
                        resampled = decode.resample(wave, SAMPLE_RATE_HZ, wave_rate)
                        waves[position] = fit(resampled, waves.shape[1])
            last = first + size >= stop
            yield RenderedBatch(shard, first - start, len(rows), teacher, student, tuple(rejects), last)

    def _zeros(self, rows: int, rate_hz: int) -> np.ndarray:
        return np.zeros((rows, frame_count(self.work.embed.window_seconds, rate_hz)), dtype=np.float32)


class ShardArrays:
    """Computes and collects the arrays of one shard, batch by batch.

    Args:
        shard: which.
        specs: the arrays to make.
        writer: the open store.
        teacher: the teacher, or None where no embedding is wanted.
        log_mel: the student's frontend.
    """

    def __init__(
        self,
        shard: int,
        specs: list[ArraySpec],
        writer: StoreWriter,
        teacher: Teacher | None,
        log_mel: LogMel,
    ) -> None:
        self.shard, self.specs = shard, specs
        self.start, stop = writer.meta.bounds(shard)
        self._teacher, self._log_mel, self._plan = teacher, log_mel, writer.rows
        self.arrays = {
            spec.path: np.full((stop - self.start, *spec.row_shape), np.nan, dtype=np.float32)
            for spec in specs
        }
        self.rejects: dict[int, dict[str, Any]] = {}

    @torch.inference_mode()
    def add(self, batch: RenderedBatch) -> None:
        """Compute the arrays of one batch."""
        rows = slice(batch.first, batch.first + batch.rows)
        self.rejects |= {reject["row"]: reject for reject in batch.rejects}
        for spec in self.specs:
            if spec.kind == "embedding":
                if self._teacher is None or batch.teacher_waves is None:
                    raise ValueError(f"no teacher was built for {spec.path}")
                made = self._teacher.embed(torch.from_numpy(batch.teacher_waves))["embedding"]
            else:
                made = self._log_mel(torch.from_numpy(batch.student_waves))
            values = made.to(torch.float32).numpy()
            self.arrays[spec.path][rows] = values
            self._reject_non_finite(spec, values, batch.first)

    def _reject_non_finite(self, spec: ArraySpec, values: np.ndarray, first: int) -> None:
        dtype = np.float32 if spec.dtype == "uint8" else np.dtype(spec.dtype)
        with np.errstate(over="ignore"):
            stored = values.astype(dtype, copy=False)
        finite = np.isfinite(stored.reshape(len(stored), -1)).all(axis=1)
        for position in np.flatnonzero(~finite):
            row = self.start + first + int(position)
            problem = f"the {spec.kind} of {spec.name} is not finite as {spec.dtype}"
            clip = str(self._plan["clip_id"].iloc[row])
            reject = {"row": row, "clip_id": clip, "path": "", "reason": f"non_finite_{spec.kind}"}
            self.rejects.setdefault(row, {**reject, "problem": problem})
