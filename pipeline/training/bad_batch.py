"""A batch whose loss or gradient is not finite: what it was is written down, then the run fails or skips it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.artifact import write_bytes
from pipeline.errors import TrainingError
from pipeline.training.batch import Batch
from pipeline.training.batch_norm import norms_of

if TYPE_CHECKING:
    from pipeline.training.state import TrainingState

log = logging.getLogger(__name__)


def file_name(step: int) -> str:
    """Return the name of the file that holds the bad batch of ``step``."""
    return f"bad_batch_step{step}.safetensors"


@dataclass(frozen=True)
class BadBatch:
    """A batch that gave numbers that are not finite.

    Attributes:
        what: ``loss`` or ``gradient``.
        values: loss, terms and gradient norm of the step.
        batch: as the loader gave it; ``log_mel``: as the student saw it (this process's rows).
    """

    what: str
    values: dict[str, float]
    batch: Batch
    log_mel: Tensor

    def refuse(self, state: TrainingState, folder: Path) -> None:
        """Write the batch; return if it may be skipped.

        Raises:
            TrainingError: more than ``train.bad_batches`` of them.
        """
        path = folder / file_name(state.step)
        content = self._content(state)
        if state.group.is_first:
            write_bytes(path, content)
        state.group.wait()
        state.skipped += 1
        numbers = ", ".join(f"{name} {value!r}" for name, value in self.values.items())
        limit = state.config.bad_batches
        if state.skipped <= limit:
            log.warning(
                "step %d skipped, its %s is not finite (%s): %d of at most %d; the batch is in %s",
                state.step, self.what, numbers, state.skipped, limit, path,
            )  # fmt: skip
            return
        many = f", after {limit} skipped" if limit else ""
        raise TrainingError(
            f"the {self.what} is not finite at step {state.step}{many}",
            expected="finite numbers",
            got=numbers,
            run=f"see the batch's rows, inputs and weights in {path}; lower train.learning_rate, run ossicle store "
            "verify, or --set train.bad_batches=N to skip such batches",
        )

    def _content(self, state: TrainingState) -> bytes:
        group = state.group
        spread = state.config.rank_rows == "span"
        tensors = {"log_mel": group.gather_values(self.log_mel)}
        for name in ("index", "spectrogram", "embedding"):
            value = getattr(self.batch, name)
            if value is not None:
                tensors[name] = group.gather_values(value) if spread else value
        tensors |= state.tensors()
        numbers = {name: repr(value) for name, value in self.values.items()}
        header = {"step": str(state.step), "what": self.what, "values": json.dumps(numbers)}
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        return safetensors.torch.save(plain, metadata=header)


class BufferGuard:
    """The model's buffers as they were before a step: batch-norm statistics and memories that a batch may spoil."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Tensor, int, Tensor]] = {}

    @torch.no_grad()
    def remember(self, model: nn.Module) -> None:
        """Copy the buffers that may have changed since the last call."""
        # A batch norm writes its statistics without counting a version.
        statistics = {id(buffer) for norm in norms_of(model) for buffer in norm.buffers()}
        for name, buffer in model.named_buffers():
            found = self._kept.get(name)
            same = found is not None and found[0] is buffer and found[1] == buffer._version
            if id(buffer) in statistics or not same:
                self._kept[name] = (buffer, buffer._version, buffer.clone())

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Put back what :meth:`remember` saw."""
        for name, buffer in model.named_buffers():
            kept = self._kept[name][2]
            buffer.resize_(kept.shape).copy_(kept)
