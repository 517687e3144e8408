"""What stage 1 asks of a teacher."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Teacher(Protocol):
    """A model whose embeddings are cached.

    Attributes:
        name: as in the registry and in the store.
        sample_rate_hz: of the waveforms it hears.
        window_samples: samples of one window.
        embedding_dim: width of the embedding.
        licence: of the weights; it follows the embeddings and every student made from them.
        citation: authors, title, venue, year.
    """

    name: str
    sample_rate_hz: int
    window_samples: int
    embedding_dim: int
    licence: str
    citation: str

    def digest(self) -> str:
        """Return 64 hex digits over code version, weights' SHA-256, windowing and dtype."""
        ...

    def embed(self, waveforms: Float[Tensor, "batch samples"]) -> dict[str, Tensor]:
        """Return ``{"embedding": (batch, embedding_dim) float32}`` on the CPU."""
        ...
