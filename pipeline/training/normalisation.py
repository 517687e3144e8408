"""Global mean and deviation of the log-mel over the store's training rows: one number each."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.errors import TrainingError


def global_statistics(pieces: Iterable[np.ndarray]) -> tuple[float, float]:
    """Return mean and population deviation of every value, in float64, one piece at a time.

    Args:
        pieces: arrays ``(rows, mels, frames)`` of finite values, one a shard.

    Raises:
        TrainingError: no values, or all the same (a store of silence).
    """
    count, mean, scatter = 0, 0.0, 0.0
    for piece in pieces:
        if not piece.size:
            continue
        values = piece.astype(np.float64)
        piece_mean = float(values.mean())
        shift, total = piece_mean - mean, count + values.size
        scatter += float(np.square(values - piece_mean).sum()) + shift**2 * count * values.size / total
        mean += shift * values.size / total
        count = total
    deviation = float(np.sqrt(scatter / count)) if count else 0.0
    if deviation == 0.0:
        raise TrainingError(
            "the store's training spectrograms are empty or constant",
            expected="rows of split train whose log-mels vary",
            got=f"{count} values",
            run="ossicle store inspect RECIPE",
        )
    return mean, deviation
