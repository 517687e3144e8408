"""What rows become as they are stored: the type, codes of 8 bits, the top k of logits; missing ones NaN."""

from __future__ import annotations

from collections.abc import Mapping

import numpy

from pipeline.errors import StoreError
from pipeline.store import topk, zarr_layout
from pipeline.store.quantisation import dequantise, quantise
from pipeline.store.schema import ArraySpec

FLOAT16_OVERFLOW = (
    65520.0  # halfway from the largest float16 to the next step: from here on it is rounded to inf
)


def lost_mass(stored: Mapping[str, numpy.ndarray]) -> dict[str, float]:
    """Return rows that are there, and the mean and largest softmax probability that their top k dropped."""
    lost = topk.lost_mass(stored["values"], stored["tail"])
    lost = lost[numpy.isfinite(lost)]
    if not len(lost):
        return {"rows": 0, "mean": 0.0, "largest": 0.0}
    return {"rows": len(lost), "mean": float(lost.mean()), "largest": float(lost.max())}


def finite_rows(spec: ArraySpec, values: numpy.ndarray) -> numpy.ndarray:
    """Return of each row (bool) whether all of its float32 values are finite in the type ``spec`` stores."""
    rows = values.reshape(len(values), -1)
    if not rows.shape[1]:
        return numpy.ones(len(rows), dtype=bool)
    # Two reductions that carry NaN along, against a limit: a cast and a test of every value take ten times longer.
    limit = FLOAT16_OVERFLOW if spec.dtype == "float16" else numpy.inf
    found: numpy.ndarray = (rows.max(axis=1) < limit) & (rows.min(axis=1) > -limit)
    return found


def stored(
    spec: ArraySpec, values: numpy.ndarray, missing: numpy.ndarray, start: int
) -> dict[str, numpy.ndarray]:
    """Return member name to stored values of the rows of one shard.

    Args:
        spec: the array.
        values: (rows, *row_shape), any float type.
        missing: positions to store as missing, whatever they hold.
        start: the shard's first row, for messages.

    Raises:
        StoreError: a row that is not finite as stored, and not missing.
    """
    kind = numpy.dtype(numpy.float32 if spec.dtype == "uint8" else spec.dtype)
    with numpy.errstate(over="ignore"):
        rows = numpy.array(values, dtype=kind)
    rows[missing] = numpy.nan
    bad = ~numpy.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    bad[missing] = False
    if bad.any():
        first = int(numpy.flatnonzero(bad)[0])
        raise StoreError(
            f"row {start + first} of {spec.path} is not finite as {kind}",
            expected="finite values, or the row among the rejects",
            got=f"{int(bad.sum())} such rows in this shard",
        )
    if spec.top_k is not None:
        exact = numpy.array(values, dtype=numpy.float32)
        exact[missing] = numpy.nan
        kept, indices, tail = topk.encode(exact, spec.top_k)
        return {"values": kept.astype(kind), "indices": indices, "tail": tail}
    if spec.dtype != "uint8":
        return {spec.data_name: rows}
    codes, scale, offset = quantise(rows)
    return {spec.data_name: codes, "scale": scale, "offset": offset}


def cast(spec: ArraySpec, members: Mapping[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    """Return members in the types that they are stored in; what overflows float16 becomes infinite."""
    types = {name: dtype for name, (dtype, _) in zarr_layout.members(spec).items()}
    with numpy.errstate(over="ignore"):
        return {name: values.astype(types[name]) for name, values in members.items()}


def decoded(spec: ArraySpec, members: list[numpy.ndarray]) -> numpy.ndarray:
    """Return rows (rows, *row_shape) of the stored members, in the order of ``zarr_layout.members``."""
    if spec.dtype == "uint8":
        return dequantise(members[0], members[1], members[2])
    if spec.top_k is not None:
        return topk.decode(members[0], members[1], members[2], spec.row_shape[0])
    return members[0]
