"""Top-k logits: the k largest of a row with their classes, and the log-sum-exp of all that was dropped.

With the tail the kept classes' softmax probabilities stay exact at any k (Born-again and FKD-style caches
keep k values alone and renormalise them: Shen and Xing, ECCV 2022); what is lost is how the tail's
probability falls on its classes. ``decode`` gives each of them the same share.
"""

from __future__ import annotations

import numpy

NO_CLASS = -1


def index_dtype(classes: int) -> str:
    """Return the integer type that holds ``classes`` indices."""
    return "int16" if classes <= numpy.iinfo(numpy.int16).max else "int32"


def encode(logits: numpy.ndarray, top_k: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Return values (rows, k) float32 in falling order, indices (rows, k) and tail (rows,) float32.

    Of equal logits the lower class comes first. A row that is not finite throughout is missing: values and
    tail NaN, indices -1.

    Args:
        logits: (rows, classes), before any softmax or sigmoid.
        top_k: how many to keep, 1 to classes - 1.
    """
    rows = logits.astype(numpy.float32)
    missing = ~numpy.isfinite(rows).all(axis=1)
    rows[missing] = 0
    order = numpy.argsort(-rows, axis=1, kind="stable")
    indices = order[:, :top_k].astype(index_dtype(rows.shape[1]))
    values = numpy.take_along_axis(rows, order[:, :top_k], axis=1)
    tail = _log_sum_exp(numpy.take_along_axis(rows, order[:, top_k:], axis=1)).astype(numpy.float32)
    values[missing], tail[missing], indices[missing] = numpy.nan, numpy.nan, NO_CLASS
    return values, indices, tail


def decode(values: numpy.ndarray, indices: numpy.ndarray, tail: numpy.ndarray, classes: int) -> numpy.ndarray:
    """Return logits (rows, classes) like ``values``: each dropped class has an even share of the tail."""
    share = tail.astype(numpy.float64) - numpy.log(classes - values.shape[1])
    logits = numpy.repeat(share[:, None], classes, axis=1)
    missing = numpy.isnan(tail)
    # A missing row's indices are -1; its values are NaN, and so is its share.
    numpy.put_along_axis(
        logits, numpy.where(missing[:, None], 0, indices).astype(numpy.int64), values, axis=1
    )
    return logits.astype(values.dtype)


def lost_mass(values: numpy.ndarray, tail: numpy.ndarray) -> numpy.ndarray:
    """Return the softmax probability (rows,) float64 of the dropped classes; NaN of missing rows."""
    kept = _log_sum_exp(values)
    return numpy.asarray(1 / (1 + numpy.exp(kept - tail.astype(numpy.float64))))


def _log_sum_exp(rows: numpy.ndarray) -> numpy.ndarray:
    exact = rows.astype(numpy.float64)
    largest = exact.max(axis=1)
    return numpy.asarray(largest + numpy.log(numpy.exp(exact - largest[:, None]).sum(axis=1)))
