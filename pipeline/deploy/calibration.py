"""Log-mels of a finished store for int8: training rows set the ranges, held-out rows judge the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from onnxruntime.quantization import CalibrationDataReader

from pipeline.deploy.onnx_export import INPUT
from pipeline.errors import StoreError
from pipeline.store.reader import StoreReader
from pipeline.store.schema import OK

BATCH_ROWS = 16


@dataclass(frozen=True)
class CalibrationRows:
    """Inputs for quantisation, both float32 (rows, 1, mels, frames).

    Attributes:
        calibration: training rows that set the activation ranges.
        held_out: rows that did not; int8 is compared with float on them.
        held_out_split: the split that ``held_out`` came from.
    """

    calibration: Float[np.ndarray, "rows 1 mels frames"]
    held_out: Float[np.ndarray, "rows 1 mels frames"]
    held_out_split: str


def read_rows(reader: StoreReader, *, calibration: int, held_out: int = 256) -> CalibrationRows:
    """Take rows shard by shard (a store's rows are already shuffled) until both numbers are reached.

    Held-out rows are of the validation split; where that has fewer than two usable rows, they are the
    training rows that follow those used for calibration.

    Raises:
        StoreError: the store has too few usable training rows.
    """
    training = list(_usable(reader, "train", calibration + held_out))
    validation = list(_usable(reader, "validation", held_out))
    split, compared = "validation", validation
    if len(validation) < 2:
        # Two rows at least are kept back, so that a tiny store still has something to judge by.
        calibration = min(calibration, len(training) - 2)
        split, compared = "train", training[calibration:]
    if calibration < 1 or len(compared) < 2 or not training:
        raise StoreError(
            "too few usable rows to compare exported files on, and to calibrate int8",
            expected="at least 1 training row and 2 held-out rows",
            got=f"{len(training)} training and {len(validation)} validation rows",
            run="ossicle embed with more audio",
        )
    return CalibrationRows(np.stack(training[:calibration]), np.stack(compared[:held_out]), split)


def _usable(reader: StoreReader, split: str, limit: int) -> Iterator[Float[np.ndarray, "1 mels frames"]]:
    found, first = 0, 0
    wanted = ((reader.rows["split"] == split) & (reader.rows["status"] == OK)).to_numpy()
    for shard, size in enumerate(reader.shard_sizes):
        inside = np.flatnonzero(wanted[first : first + size])
        first += size
        if len(inside) == 0:
            continue
        spectrograms = reader.read_shard(shard, arrays=("spectrogram",))["spectrogram"]
        for row in inside:
            if found == limit:
                return
            found += 1
            yield spectrograms[row][None].astype(np.float32)


class LogMelBatches(CalibrationDataReader):
    """ONNX Runtime's view of the calibration rows: one batch a call, then None."""

    def __init__(
        self, log_mels: Float[np.ndarray, "rows 1 mels frames"], batch_rows: int = BATCH_ROWS
    ) -> None:
        self._log_mels, self._batch_rows = log_mels, batch_rows
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch as the graph's inputs, or None after the last."""
        if self._next >= len(self._log_mels):
            return None
        batch = self._log_mels[self._next : self._next + self._batch_rows]
        self._next += self._batch_rows
        return {INPUT: batch}

    def rewind(self) -> None:
        """Start again from the first row."""
        self._next = 0
