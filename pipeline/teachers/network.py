"""The half that every teacher made of a torch network shares: batches, number format, digest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config import TeacherConfig, digest
from pipeline.teachers import precision
from pipeline.teachers.base import EMBEDDING_ONLY, check_outputs


class NetworkTeacher(ABC):
    """A teacher whose ``compute`` runs a torch network; a family gives the attributes and ``compute``.

    Attributes:
        outputs: names that ``embed`` can give.
        code_version: changes whenever the family's code gives other numbers ("beats/1").
        weights_sha256: of the published checkpoint file, or of the safetensors it was given as.
        options: the family's own keys that change numbers, as plain JSON values.

    Args:
        config: device, dtype and batch size.
        weights_sha256: see above.
        options: see above.
    """

    code_version: ClassVar[str]
    name: str
    sample_rate_hz: int
    window_samples: int
    embedding_dim: int
    licence: str
    citation: str
    outputs: tuple[str, ...]

    def __init__(
        self, config: TeacherConfig, weights_sha256: str, options: dict[str, Any] | None = None
    ) -> None:
        self.device, self.dtype = precision.resolve(config)
        self.batch_size = config.batch_size
        self.weights_sha256, self.options = weights_sha256, options or {}

    @abstractmethod
    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return at least ``outputs`` of one batch, float32 waveforms on ``self.device``, any dtype back."""

    def digest(self) -> str:
        """Return the digest of code version, weights, options, windowing and dtype."""
        return digest(
            {
                "code": self.code_version,
                "weights_sha256": self.weights_sha256,
                "options": self.options,
                "window_samples": self.window_samples,
                "dtype": str(self.dtype).removeprefix("torch."),
            }
        )

    @torch.inference_mode()
    def embed(
        self, waveforms: Float[Tensor, "batch samples"], outputs: Sequence[str] = EMBEDDING_ONLY
    ) -> dict[str, Tensor]:
        """Return the asked ``outputs`` as float32 on the CPU, ``batch_size`` windows at a time.

        Raises:
            ConfigError: an output that this teacher does not have.
        """
        check_outputs(self.name, self.outputs, outputs)
        asked = frozenset(outputs)
        if len(waveforms) == 0:
            empty = self._one_batch(waveforms.new_zeros(1, max(1, waveforms.shape[1])), asked)
            return {name: empty[name][:0] for name in outputs}
        if self.device.type == "cuda":
            return self._on_gpu(waveforms, asked)
        parts = [self._one_batch(part, asked) for part in waveforms.split(self.batch_size)]
        return {name: torch.cat([part[name] for part in parts]) for name in outputs}

    def _one_batch(self, waveforms: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
        made = self.compute(waveforms.to(self.device, torch.float32), outputs)
        return {name: made[name].float().cpu() for name in outputs}

    def _on_gpu(self, waveforms: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
        """Queue every batch without waiting: copies from and to page-locked memory run beside the host.

        Only the end is waited for, so the device never stands still between two batches.
        """
        with torch.cuda.device(self.device):
            heard = waveforms.to(torch.float32)
            heard = heard if heard.is_cuda else heard.pin_memory()
            results: dict[str, Tensor] = {}
            done = 0
            for part in heard.split(self.batch_size):
                made = self.compute(part.to(self.device, non_blocking=True), outputs)
                for name in outputs:
                    value = made[name].float()
                    if name not in results:
                        shape = (len(heard), *value.shape[1:])
                        results[name] = torch.empty(shape, dtype=torch.float32, pin_memory=True)
                    results[name][done : done + len(part)].copy_(value, non_blocking=True)
                done += len(part)
            torch.cuda.current_stream().synchronize()
        return results
