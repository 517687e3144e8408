"""X-ARES (arXiv 2505.16369, 2025) for any student: name this file, or one of yours that subclasses, as its encoder.

``OSSICLE_STUDENT=artifacts/run/NAME python -m xares.run ... pipeline/adapters/xares.py ...``. The kit takes the only
name in the module that ends in Encoder and calls it without arguments.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.adapters.student_windows import WINDOW_SECONDS, open_student
from pipeline.errors import ConfigError

HOP_MS = 100.0


class StudentEncoder(nn.Module):
    """A student as X-ARES hears it: windows of ``window_seconds`` around the middle of every hop.

    Args:
        reference: run folder, export folder or ONNX file; None = ``OSSICLE_STUDENT``.
        window_seconds: of a window, where the file does not fix it.
        hop_ms: between embeddings.

    Attributes:
        sampling_rate: Hz of the sound it takes, the student's own.
        output_dim: width of an embedding.
        hop_size_in_ms: between embeddings.

    Raises:
        ConfigError: no student is named, or the hop is not above 0.
        MissingArtifactError: it is not there.
        WeightsError: it is damaged, or is no file of ours.
    """

    def __init__(
        self,
        reference: str | Path | None = None,
        window_seconds: float = WINDOW_SECONDS,
        hop_ms: float = HOP_MS,
    ) -> None:
        super().__init__()
        if hop_ms <= 0:
            raise ConfigError("a hop is longer than nothing", expected="> 0 ms", got=hop_ms)
        self.student = open_student(reference, window_seconds)
        self.sampling_rate = self.student.sample_rate_hz
        self.output_dim = self.student.embedding_dim
        self.hop_size_in_ms = hop_ms

    def forward(self, audio: Float[Tensor, "sounds samples"]) -> Float[Tensor, "sounds times dim"]:
        """Return one embedding a hop."""
        embedding, _ = self.student.sliding(audio, self.hop_size_in_ms / 1_000)
        return embedding
