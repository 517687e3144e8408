"""What every student has in common: one channel of log-mel in, one embedding a clip out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import nn

if TYPE_CHECKING:
    from pipeline.students.causal import CausalForm


class Student(nn.Module):
    """A backbone that turns log-mel ``(batch, 1, mels, frames)`` into a float32 ``(batch, embedding_dim)``.

    Args:
        pooled_dim: width of the pooled features, the network's own embedding.
        embedding_dim: width wanted; where it differs from ``pooled_dim`` a linear layer with bias
            follows the pooling (entries ``embedding.weight``, ``embedding.bias``). None: the network's own.

    Attributes:
        normalises_input: it hears the spectrogram as stored, for normalising is its own first step (a batch norm)
            or it needs the true level; any other hears ``(log_mel - mean) / std``.
        published_constants: prefixes of entries of the published files that are the frontend's here.
        not_causal: why the family has no causal form; None where :func:`~.causal.make_causal` makes one, which
            wants every layer that mixes frames to be a module with a :func:`~.causal.causal_form`.
        causal: what :func:`~.causal.make_causal` made of it; None for the network as published.
    """

    normalises_input = False
    published_constants: tuple[str, ...] = ()
    not_causal: ClassVar[str | None] = "nobody has said how its layers would look back only"
    causal: CausalForm | None = None

    def __init__(self, pooled_dim: int, embedding_dim: int | None = None) -> None:
        super().__init__()
        self.pooled_dim = pooled_dim
        self.embedding_dim = pooled_dim if embedding_dim is None else embedding_dim
        self.embedding: nn.Module = nn.Identity()
        if self.embedding_dim != pooled_dim:
            self.embedding = nn.Linear(pooled_dim, self.embedding_dim)

    def deploy_form(self, mels: int, mean: float, std: float) -> nn.Module | None:
        """Return the trained network in a graph that int8 kernels are fast at, None where its own is.

        Args:
            mels: of the input, which is the log-mel as stored.
            mean, std: of the training rows.
        """
        return None

    def at_any_length(self) -> None:
        """Drop what the forward does to short inputs: a causal student hears whole blocks only."""


def round_channels(channels: float, divisor: int) -> int:
    """Return the multiple of ``divisor`` nearest to ``channels`` (halves upwards, at least ``divisor``)."""
    return max(divisor, int(channels / divisor + 0.5) * divisor)


def make_divisible(channels: int | float, divisor: int = 8) -> int:
    """Return the multiple of ``divisor`` nearest to ``channels``, never more than a tenth below it.

    The rule of the MobileNets (Sandler et al., CVPR 2018).
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
