"""What stage 1 asks of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from pipeline.errors import ConfigError, near_matches

EMBEDDING_ONLY = ("embedding",)


def check_outputs(teacher: str, known: Sequence[str], asked: Sequence[str]) -> None:
    """Refuse an output that a teacher does not have.

    Raises:
        ConfigError: with the outputs whose names are near.
    """
    for output in asked:
        if output not in known:
            raise ConfigError(
                f"teacher {teacher!r} has no output {output!r}",
                expected=near_matches(output, known),
                got=output,
            )


@runtime_checkable
class Teacher(Protocol):
    """A model whose outputs are cached.

    Attributes:
        name: as in the registry and in the store.
        sample_rate_hz: of the waveforms it hears.
        window_samples: samples of the window its authors use; it takes shorter and longer ones too.
        embedding_dim: width of the embedding.
        outputs: names that ``embed`` can give: ``embedding`` always; ``logits``, ``frames``, ``layer.0`` ...
        licence: of the weights; it follows the embeddings and every student made from them.
        citation: authors, title, venue, year.
    """

    name: str
    sample_rate_hz: int
    window_samples: int
    embedding_dim: int
    licence: str
    citation: str
    outputs: tuple[str, ...]

    def digest(self) -> str:
        """Return 64 hex digits over code version, weights' SHA-256, options, windowing and dtype."""
        ...

    def embed(
        self, waveforms: Float[Tensor, "batch samples"], outputs: Sequence[str] = EMBEDDING_ONLY
    ) -> dict[str, Tensor]:
        """Return the asked ``outputs`` as float32 on the CPU.

        ``embedding``: (batch, embedding_dim); ``logits``: (batch, classes), before any sigmoid or softmax;
        ``frames``: (batch, time, width), evenly spaced over the window; ``layer.N``: (batch, width), the time
        mean of layer N's output, 0 = the first block's.
        """
        ...
