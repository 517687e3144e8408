"""The students' log-mel of a stream, in torch: frame by frame equal to that of the whole signal."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import AudioError
from pipeline.frontends.log_mel import LogMel
from pipeline.frontends.sample_queue import SampleQueue


class LogMelStream:
    """Samples in, in any portions; frames out as soon as they are whole.

    Args:
        frontend: gives the frames.
        batch: streams side by side.

    Example:
        >>> from pipeline.config import LogMelConfig
        >>> stream = LogMelStream(LogMel(LogMelConfig()))
        >>> stream.push(torch.zeros(1, 1_000)).shape, stream.finish().shape
        (torch.Size([1, 64, 3]), torch.Size([1, 64, 1]))
    """

    def __init__(self, frontend: LogMel, batch: int = 1) -> None:
        self.frontend, self.batch = frontend, batch
        self.queue = SampleQueue[Tensor](
            frontend.config,
            join=lambda parts: torch.cat(list(parts), dim=1),
            turned=lambda samples: samples.flip(1),
            silence=self._silence,
        )

    def _silence(self, number: int) -> Tensor:
        return self.frontend.window.new_zeros(self.batch, number)

    def push(self, samples: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch mels frames"]:
        """Hear any number of samples and return the frames that they complete, perhaps none.

        Raises:
            AudioError: another number of streams.
        """
        if samples.shape[0] != self.batch:
            raise AudioError(
                "shape", "these samples are of another stream", expected=f"({self.batch}, samples)",
                got=tuple(samples.shape),
            )  # fmt: skip
        return self._levels(self.queue.push(samples))

    def finish(self) -> Float[Tensor, "batch mels frames"]:
        """End the signal and return its last frames, perhaps none.

        Raises:
            AudioError: the whole signal was too short for one frame, or for reflection padding.
        """
        return self._levels(self.queue.finish())

    def _levels(self, block: Tensor | None) -> Tensor:
        if block is None:
            return self.frontend.window.new_zeros(self.batch, self.frontend.config.mels, 0)
        found: Tensor = self.frontend.levels(block)
        return found
