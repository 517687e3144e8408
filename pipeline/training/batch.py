"""What training needs of a batch."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Batch(Protocol):
    """The part of ``pipeline.data.loader.Batch`` that training uses."""

    @property
    def index(self) -> Tensor: ...
    @property
    def spectrogram(self) -> Tensor | None: ...
    @property
    def embedding(self) -> Tensor | None: ...
    @property
    def target_index(self) -> Tensor: ...
