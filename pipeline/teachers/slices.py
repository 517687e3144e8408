"""Long clips in slices of 10 s, as S-SONDO (Ali Adlouni et al., 2025) feeds M2D and MATPAC."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.teachers.network import NetworkTeacher
from pipeline.teachers.vit import Encoded, layers_of

SLICE_SECONDS = 10.0


def cut_slices(
    waveforms: Float[Tensor, "batch samples"], slice_samples: int
) -> Float[Tensor, "batch slices slice_samples2"]:
    """Return the clips in slices, the last one filled with silence; a clip of one slice or less as it is."""
    samples = waveforms.shape[-1]
    if samples <= slice_samples:
        return waveforms[:, None]
    padded: Tensor = F.pad(waveforms, (0, -samples % slice_samples))
    return padded.reshape(len(waveforms), -1, slice_samples)


def frames_of_slices(
    frames: Float[Tensor, "batch slices columns width"],
    samples: int,
    *,
    slice_samples: int,
    column_samples: int,
) -> Float[Tensor, "batch steps width"]:
    """Return the slices' columns one after another, without those of the silence behind the clip.

    Args:
        frames: of each slice.
        samples: of the clip before it was filled.
        slice_samples: of a slice.
        column_samples: between two columns.
    """
    slices, columns = frames.shape[1:3]
    joined = frames.flatten(1, 2)
    if slices == 1:
        return joined
    last = samples - (slices - 1) * slice_samples
    return joined[:, : (slices - 1) * columns + min(columns, -(-last // column_samples))]


class SlicedVitTeacher(NetworkTeacher):
    """What M2D and MATPAC share: clips in slices, slices through the transformer, columns of patches pooled.

    Attributes:
        side_by_side: an embedding holds the bands of a column one after another, not their mean.
        in_slices: clips past 10 s are cut into slices; otherwise the network hears them whole.
        column_samples: between two columns of patches.
    """

    side_by_side: bool
    in_slices: bool
    column_samples: int

    @abstractmethod
    def encode(self, waveforms: Float[Tensor, "batch samples"], layers: Collection[int]) -> Encoded:
        """Return the patches of each waveform and the time means of ``layers``."""

    @abstractmethod
    def classify(self, patches: Float[Tensor, "batch columns bands dim"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of the class head, for a teacher that lists them."""

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return the outputs of waveforms; a sliced clip's are its slices' means, its frames theirs joined."""
        batch, samples = waveforms.shape
        layers = layers_of(outputs)
        slices = cut_slices(waveforms, self.window_samples) if self.in_slices else waveforms[:, None]
        heard = [self.encode(part, layers) for part in slices.flatten(0, 1).split(self.batch_size)]
        patches = torch.cat([part.patches for part in heard])
        patches = patches.reshape(batch, -1, *patches.shape[1:])
        made = {"embedding": self._pooled(patches).mean(dim=(1, 2))}
        for n in layers:
            means = self._pooled(torch.cat([part.layers[n] for part in heard]))
            made[f"layer.{n}"] = means.reshape(batch, -1, means.shape[-1]).mean(dim=1)
        if "frames" in outputs:
            made["frames"] = frames_of_slices(
                self._pooled(patches),
                samples,
                slice_samples=self.window_samples,
                column_samples=self.column_samples,
            )
        if "logits" in outputs:
            made["logits"] = self.classify(patches.flatten(1, 2))
        return made

    def _pooled(self, values: Tensor) -> Tensor:
        """Return (..., width) of (..., bands, dim): the bands side by side, or their mean."""
        return values.flatten(-2) if self.side_by_side else values.mean(dim=-2)
