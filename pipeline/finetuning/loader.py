"""Endless batches of cached clips, in an order that is a pure function of seed and step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor


@dataclass(frozen=True)
class ClipBatch:
    """What the training loop takes; ``embedding`` has no meaning here."""

    index: Tensor
    spectrogram: Tensor
    embedding: Tensor

    @property
    def target_index(self) -> Tensor:
        """The rows whose labels are the targets: those that are heard."""
        return self.index


class ClipLoader:
    """Every epoch all rows once in a new order, the incomplete last batch left out.

    Args:
        rows: that may be drawn.
        batch_size: rows a batch; all rows where there are fewer.
        seed: of the orders.
        take: from rows to what the augmentation hears.
        note: told of every batch's rows before it is given.
    """

    def __init__(
        self,
        rows: Int64[np.ndarray, " rows"],
        batch_size: int,
        seed: int,
        take: Callable[[np.ndarray], Tensor],
        note: Callable[[Tensor], None],
    ) -> None:
        self.rows, self.seed, self.take, self.note = rows, seed, take, note
        self.batch_size = min(batch_size, len(rows))
        self.batches = len(rows) // self.batch_size
        self.step = 0

    def __iter__(self) -> Iterator[ClipBatch]:
        """Yield batches from the current step on."""
        while True:
            chosen = self.rows_of(self.step)
            self.step += 1
            index = torch.from_numpy(chosen)
            self.note(index)
            yield ClipBatch(index, self.take(chosen), torch.zeros(len(chosen), 1))

    def rows_of(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Return the rows of batch ``step``."""
        epoch, place = divmod(step, self.batches)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Return the place: batches given."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.step = int(state["step"])
