"""Makes some rows of a store anew and says how well they agree with what is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy
import pandas

from pipeline.errors import StoreError
from pipeline.store import encoding
from pipeline.store.reader import StoreReader
from pipeline.store.schema import ArraySpec
from pipeline.store.zarr_layout import members

# Rows of clips.parquet to ArraySpec.path to (rows, *row_shape); the caller brings audio and teachers.
Recompute = Callable[[pandas.DataFrame], Mapping[str, numpy.ndarray]]

MIN_COSINE = 0.99
# A row scaled as a whole has cosine 1; its difference is then this share of its norm at most.
MAX_RELATIVE_ERROR = 0.05
# The centred cosine needs the rows once more after their mean is known: it is of the first this many.
CENTRED_ROWS = 1024


@dataclass(frozen=True)
class Agreement:
    """How well rows made anew agree with the stored ones of one array.

    Attributes:
        array: its path.
        rows: number compared.
        max_difference: largest absolute difference.
        min_cosine: smallest cosine between a row and its stored self.
        max_relative_error: largest norm of a row's difference over the stored row's norm.
        centred_cosine: mean cosine after the stored rows' mean is taken from both: the figure that a common
            offset cannot flatter; of the first 1024 rows.
        disagreeing: rows of the store past a threshold, in order.
    """

    array: str
    rows: int
    max_difference: float
    min_cosine: float
    max_relative_error: float
    centred_cosine: float
    disagreeing: tuple[int, ...]

    @property
    def holds(self) -> bool:
        """Whether every row agrees."""
        return not self.disagreeing


def draw(reader: StoreReader, sample: int | None, seed: int = 0) -> numpy.ndarray:
    """Return rows to audit, in order: usable ones of every shard alike, so that no shard goes unseen.

    Args:
        reader: the store.
        sample: how many, but at least one of every shard that has any; None = all.
        seed: of the draw.

    Raises:
        StoreError: no row is usable, or ``sample`` is below 1.
    """
    usable = numpy.flatnonzero(reader.usable())
    if not len(usable) or (sample is not None and sample < 1):
        raise StoreError(
            "there is nothing to audit", expected="usable rows and sample >= 1", got=(len(usable), sample)
        )
    if sample is None:
        return usable
    # Every shard's rows in a drawn order of their own; then first rows of all shards, second rows, ...
    generator = numpy.random.default_rng(seed)
    shuffled = generator.permutation(usable)
    shard = shuffled // reader.meta.shard_rows
    order = numpy.argsort(shard, kind="stable")
    sizes = numpy.unique(shard, return_counts=True)[1]
    turn = numpy.empty(len(usable), dtype=numpy.int64)
    turn[order] = numpy.concatenate([numpy.arange(size) for size in sizes])
    by_turn = numpy.lexsort((generator.permutation(len(usable)), turn))
    return numpy.sort(shuffled[by_turn[: max(sample, len(sizes))]])


def audit(
    reader: StoreReader,
    specs: Sequence[ArraySpec],
    recompute: Recompute,
    rows: numpy.ndarray,
    *,
    min_cosine: float = MIN_COSINE,
    max_difference: float | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[Agreement]:
    """Make ``rows`` anew, a shard at a time, and compare them with the stored ones.

    What is made anew passes through the array's own type first (float16, 8 bits, top k), so that the loss of
    storing is not held against the store.

    Args:
        reader: the store.
        specs: the arrays to compare; ``recompute`` gives at least these.
        recompute: makes rows anew.
        rows: which, in order (``draw``).
        min_cosine: below it a row disagrees.
        max_difference: above it (of any value) a row disagrees; None = a twentieth of the row's norm.
        on_rows: told how many more rows were compared.

    Returns:
        One agreement an array.

    Raises:
        StoreError: a shard cannot be read, or a row made anew has another shape.
    """
    found = {spec.path: _Comparison(spec) for spec in specs}
    shards = rows // reader.meta.shard_rows
    for shard in numpy.unique(shards):
        mine = rows[shards == shard]
        fresh = recompute(reader.rows.iloc[mine].reset_index(drop=True))
        for spec in specs:
            stored = reader.read_array(spec, int(shard))[mine % reader.meta.shard_rows]
            found[spec.path].add(mine, stored, fresh[spec.path])
        on_rows(len(mine))
    return [found[spec.path].agreement(min_cosine, max_difference) for spec in specs]


class _Comparison:
    """Figures of one array, row by row; of the rows themselves the first ones are kept."""

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        self._rows: list[numpy.ndarray] = []
        self._figures: list[numpy.ndarray] = []
        self._kept: list[numpy.ndarray] = []
        self._made: list[numpy.ndarray] = []

    def add(self, rows: numpy.ndarray, stored: numpy.ndarray, fresh: numpy.ndarray) -> None:
        if stored.shape != fresh.shape:
            raise StoreError(
                f"{self.spec.path} made anew has another shape", expected=stored.shape, got=fresh.shape
            )
        again = encoding.stored(self.spec, fresh, numpy.array([], dtype=numpy.int64), int(rows[0]))
        made = encoding.decoded(self.spec, [again[name] for name in members(self.spec)])
        kept = stored.reshape(len(stored), -1).astype(numpy.float64)
        made = made.reshape(len(made), -1).astype(numpy.float64)
        norm = numpy.maximum(numpy.linalg.norm(kept, axis=1), 1e-12)
        self._rows.append(rows)
        self._figures.append(
            numpy.stack(
                [
                    numpy.abs(kept - made).max(axis=1),
                    cosine(kept, made),
                    numpy.linalg.norm(kept - made, axis=1) / norm,
                ]
            )
        )
        room = CENTRED_ROWS - sum(map(len, self._kept))
        if room > 0:
            self._kept.append(kept[:room])
            self._made.append(made[:room])

    def agreement(self, min_cosine: float, max_difference: float | None) -> Agreement:
        rows, figures = numpy.concatenate(self._rows), numpy.concatenate(self._figures, axis=1)
        difference, cosines, relative = figures
        wrong = (cosines < min_cosine) | (
            relative > MAX_RELATIVE_ERROR if max_difference is None else difference > max_difference
        )
        kept, made = numpy.concatenate(self._kept), numpy.concatenate(self._made)
        mean = kept.mean(axis=0)
        centred = cosine(kept - mean, made - mean) if len(kept) > 1 else cosines
        return Agreement(
            self.spec.path,
            len(rows),
            float(difference.max()),
            float(cosines.min()),
            float(relative.max()),
            float(centred.mean()),
            tuple(int(row) for row in rows[wrong]),
        )


def cosine(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
    """Return the cosine (rows,) of each row of ``a`` to that of ``b``; of two zero rows 1."""
    norms = numpy.linalg.norm(a, axis=1) * numpy.linalg.norm(b, axis=1)
    dots = (a * b).sum(axis=1)
    both_zero = numpy.isclose(a, b).all(axis=1) & (norms == 0)
    return numpy.asarray(numpy.where(both_zero, 1.0, dots / numpy.maximum(norms, 1e-12)))
