"""Makes some rows of a store anew and says how well they agree with what is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy
import pandas

from pipeline.errors import StoreError
from pipeline.store.reader import StoreReader

Recompute = Callable[[pandas.DataFrame], Mapping[str, numpy.ndarray]]


@dataclass(frozen=True)
class Agreement:
    """How well rows made anew agree with the stored ones.

    Attributes:
        kind: ``spectrogram`` or ``embedding``.
        rows: number compared.
        max_error: largest absolute difference.
        relative_error: norm of the difference over norm of the stored rows.
        min_cosine: smallest cosine between a row and its stored self.
        centred_cosine: mean cosine after the stored rows' mean is taken from both: the figure that a common
            offset cannot flatter.
        worst_row: where ``min_cosine`` is.
    """

    kind: str
    rows: int
    max_error: float
    relative_error: float
    min_cosine: float
    centred_cosine: float
    worst_row: int

    def holds(self, tolerance: float = 0.01) -> bool:
        """Whether the rows agree: relative error within ``tolerance`` and no row's cosine below 1 - it."""
        return self.relative_error <= tolerance and self.min_cosine >= 1 - tolerance


def audit(reader: StoreReader, recompute: Recompute, sample: int, seed: int = 0) -> list[Agreement]:
    """Make ``sample`` drawn rows anew and compare them with the store.

    Args:
        reader: the store, its arrays chosen.
        recompute: rows of ``clips.parquet`` to ``{"embedding": (n, dim)}`` and/or ``"spectrogram"``; the
            caller brings audio and teacher.
        sample: rows to draw among those with status ok.
        seed: of the draw.
    """
    usable = numpy.flatnonzero(reader.usable())
    if not len(usable) or sample < 1:
        raise StoreError(
            "there is nothing to audit", expected="usable rows and sample >= 1", got=(len(usable), sample)
        )
    drawn = numpy.sort(numpy.random.default_rng(seed).choice(usable, min(sample, len(usable)), replace=False))
    fresh = recompute(reader.rows.iloc[drawn].reset_index(drop=True))
    return [_agreement(kind, drawn, _stored_rows(reader, kind, drawn), rows) for kind, rows in fresh.items()]


def _agreement(kind: str, drawn: numpy.ndarray, stored: numpy.ndarray, fresh: numpy.ndarray) -> Agreement:
    if stored.shape != fresh.shape:
        raise StoreError(f"the {kind} made anew has another shape", expected=stored.shape, got=fresh.shape)
    kept = stored.reshape(len(stored), -1).astype(numpy.float64)
    made = fresh.reshape(len(fresh), -1).astype(numpy.float64)
    cosine = _cosine(kept, made)
    mean = kept.mean(axis=0)
    centred = _cosine(kept - mean, made - mean) if len(kept) > 1 else cosine
    return Agreement(
        kind,
        len(kept),
        float(numpy.abs(kept - made).max()),
        float(numpy.linalg.norm(kept - made)) / max(float(numpy.linalg.norm(kept)), 1e-12),
        float(cosine.min()),
        float(centred.mean()),
        int(drawn[int(cosine.argmin())]),
    )


def _cosine(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
    norms = numpy.linalg.norm(a, axis=1) * numpy.linalg.norm(b, axis=1)
    dots = (a * b).sum(axis=1)
    both_zero = numpy.isclose(a, b).all(axis=1) & (norms == 0)
    return numpy.asarray(numpy.where(both_zero, 1.0, dots / numpy.maximum(norms, 1e-12)))


def _stored_rows(reader: StoreReader, kind: str, rows: numpy.ndarray) -> numpy.ndarray:
    shard_rows = reader.meta.shard_rows
    parts = [
        reader.read_shard(int(shard), (kind,))[kind][rows[rows // shard_rows == shard] % shard_rows]
        for shard in numpy.unique(rows // shard_rows)
    ]
    return numpy.concatenate(parts)
