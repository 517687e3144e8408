"""Augmentation of cached pairs: what leaves the cached embedding true, and what does not.

The teacher heard a window once. *Exact* changes keep its embedding a fair target; *approximate* ones need
the loss to be mixed over whole targets; *forbidden* ones change what the teacher would have heard, and belong
into stage 1 as views of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.errors import ConfigError, near_matches

Validity = Literal["exact", "approximate", "forbidden"]


@dataclass(frozen=True)
class Augmentation:
    """A change of a cached log-mel: whether its embedding still holds, and why."""

    validity: Validity
    reason: str


AUGMENTATIONS: dict[str, Augmentation] = {
    "frequency_mask": Augmentation("exact", "hides one band from the student, who shall guess it"),
    "time_mask": Augmentation("exact", "hides one span from the student, who shall guess it"),
    "time_roll": Augmentation(
        "exact", "the teacher's embedding pools over time; a small circular shift keeps it"
    ),
    "gain": Augmentation("exact", "an embedding should not depend on a small change of level"),
    "freq_mixstyle": Augmentation(
        "exact", "changes the device's colour alone, which the embedding should not hold"
    ),
    "mixup": Augmentation(
        "approximate",
        "the teacher never heard the mixture: mix the loss over both whole targets, not the embeddings",
    ),
    "time_reversal": Augmentation(
        "forbidden", "attack and decay change places: the teacher would hear another sound"
    ),
    "pitch_shift": Augmentation("forbidden", "pitch is part of what the teacher hears"),
    "time_stretch": Augmentation("forbidden", "tempo and texture are part of what the teacher hears"),
    "reverberation": Augmentation("forbidden", "the teacher would hear the room"),
    "noise": Augmentation("forbidden", "the teacher would hear the noise"),
}


def require_exact(name: str) -> Augmentation:
    """Return the augmentation called ``name`` if a cached target stays true under it.

    Raises:
        ConfigError: it is approximate, forbidden (both with the reason) or unknown (near matches).
    """
    if name not in AUGMENTATIONS:
        raise ConfigError(
            f"no augmentation is called {name!r}", expected=near_matches(name, AUGMENTATIONS), got=name
        )
    found = AUGMENTATIONS[name]
    if found.validity != "exact":
        raise ConfigError(
            f"{name} is {found.validity} on cached targets: {found.reason}",
            expected=", ".join(sorted(n for n, a in AUGMENTATIONS.items() if a.validity == "exact")),
            got=name,
            run="ossicle embed with views ([embed.views]): there the teacher hears the change",
        )
    return found


def frequency_mask(
    log_mel: Float[Tensor, "batch mels frames"], max_rows: int, fill: float, generator: torch.Generator
) -> Float[Tensor, "batch mels frames"]:
    """Return ``log_mel`` with one band of each clip set to ``fill``.

    The width is drawn uniformly from 0..``max_rows`` and then the place (SpecAugment's frequency masking
    without time warping, Park et al., Interspeech 2019). ``fill`` is the data set's mean, so that a mask is 0
    after normalisation; the paper's 0 supposes log-mels normalised to mean 0.
    """
    return _mask(log_mel, max_rows, fill, generator, axis=1)


def time_mask(
    log_mel: Float[Tensor, "batch mels frames"], max_frames: int, fill: float, generator: torch.Generator
) -> Float[Tensor, "batch mels frames"]:
    """Return ``log_mel`` with one span of up to ``max_frames`` frames of each clip set to ``fill``."""
    return _mask(log_mel, max_frames, fill, generator, axis=2)


def time_roll(
    log_mel: Float[Tensor, "batch mels frames"], max_frames: int, generator: torch.Generator
) -> Float[Tensor, "batch mels frames"]:
    """Return the batch rolled circularly in time by one shift drawn from -``max_frames``..``max_frames``."""
    _check_limit(max_frames, log_mel.shape[2], "time_roll")
    if max_frames == 0:
        return log_mel
    shift = int(torch.randint(-max_frames, max_frames + 1, (), generator=generator))
    return log_mel.roll(shift, dims=2)


def spec_augment(
    log_mel: Float[Tensor, "batch mels frames"],
    *,
    freq_mask_rows: int,
    time_mask_frames: int,
    fill: float,
    generator: torch.Generator,
) -> Float[Tensor, "batch mels frames"]:
    """Return ``log_mel`` with one band and one span of each clip set to ``fill``; limit 0 masks nothing."""
    masked = frequency_mask(log_mel, freq_mask_rows, fill, generator)
    return time_mask(masked, time_mask_frames, fill, generator)


def draw_spans(
    batch: int, length: int, limit: int, generator: torch.Generator
) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
    """Return start and end of one span a clip: width uniform in 0..``limit``, start uniform where it fits."""
    width = torch.randint(0, limit + 1, (batch,), generator=generator)
    # A float64 below 1 times a count stays below the count: every start fits.
    place = torch.rand(batch, generator=generator, dtype=torch.float64)
    start = (place * (length - width + 1)).long()
    return start, start + width


def _mask(log_mel: Tensor, limit: int, fill: float, generator: torch.Generator, axis: int) -> Tensor:
    length = log_mel.shape[axis]
    _check_limit(limit, length, "frequency_mask" if axis == 1 else "time_mask")
    if limit == 0:
        return log_mel
    start, end = draw_spans(log_mel.shape[0], length, limit, generator)
    place = torch.arange(length)
    hidden = (place >= start[:, None]) & (place < end[:, None])
    return log_mel.masked_fill(hidden.unsqueeze(3 - axis).to(log_mel.device), fill)


def _check_limit(limit: int, length: int, name: str) -> None:
    if not 0 <= limit <= length:
        raise ConfigError(f"{name} cannot reach that far", expected=f"0 to {length}", got=limit)
