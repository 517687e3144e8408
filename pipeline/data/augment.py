"""Augmentation of cached pairs: what leaves the cached embedding true, and what does not.

The teacher heard a window once. *Exact* changes keep its embedding a fair target; *approximate* ones need
the loss to be mixed over whole targets; *forbidden* ones change what the teacher would have heard, and belong
into stage 1 as views of their own.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.config import LogMelConfig
from pipeline.data_config import AUGMENTATIONS as AUGMENTATIONS
from pipeline.data_config import WHERE_EXACT
from pipeline.data_config import Augmentation as Augmentation
from pipeline.errors import ConfigError, near_matches

FLOOR_TOLERANCE = 1.02


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
    log_mel: Float[Tensor, "batch mels frames"],
    max_rows: int,
    fill: float,
    generator: torch.Generator,
    *,
    per_clip: bool = True,
) -> Float[Tensor, "batch mels frames"]:
    """Return ``log_mel`` with one band of each clip set to ``fill``.

    The width is drawn uniformly from 0..``max_rows`` and then the place (SpecAugment's frequency masking
    without time warping, Park et al., Interspeech 2019). ``fill`` is the data set's mean, so that a mask is 0
    after normalisation; the paper's 0 supposes log-mels normalised to mean 0. Without ``per_clip`` the whole
    batch has one band.
    """
    return _mask(log_mel, max_rows, fill, generator, 1, per_clip)


def time_mask(
    log_mel: Float[Tensor, "batch mels frames"],
    max_frames: int,
    fill: float,
    generator: torch.Generator,
    *,
    per_clip: bool = True,
) -> Float[Tensor, "batch mels frames"]:
    """Return ``log_mel`` with one span of up to ``max_frames`` frames of each clip set to ``fill``."""
    return _mask(log_mel, max_frames, fill, generator, 2, per_clip)


def spec_augment(
    log_mel: Float[Tensor, "batch mels frames"],
    *,
    freq_mask_rows: int,
    time_mask_frames: int,
    fill: float,
    generator: torch.Generator,
    freq_masks: int = 1,
    time_masks: int = 1,
    per_clip: bool = True,
    in_place: bool = False,
) -> Float[Tensor, "batch mels frames"]:
    """Return ``log_mel`` with bands and spans of each clip set to ``fill``; limit 0 masks nothing.

    With ``in_place`` the masks are written into ``log_mel`` itself.
    """
    given = log_mel
    masks = [(1, freq_mask_rows)] * freq_masks + [(2, time_mask_frames)] * time_masks
    for axis, limit in masks:
        # The first mask copies the batch; further ones may write into that copy.
        owned = in_place or log_mel is not given
        log_mel = _mask(log_mel, limit, fill, generator, axis, per_clip, in_place=owned)
    return log_mel


def time_roll(
    log_mel: Float[Tensor, "batch mels frames"],
    max_frames: int,
    generator: torch.Generator,
    *,
    per_clip: bool = False,
) -> Float[Tensor, "batch mels frames"]:
    """Return the batch rolled circularly in time by a shift drawn from -``max_frames``..``max_frames``.

    Both ends are drawn. One shift for the batch, or with ``per_clip`` one a clip.
    """
    _check_limit(max_frames, log_mel.shape[2], "time_roll")
    if max_frames == 0:
        return log_mel
    if per_clip:
        return roll_clips(
            log_mel, torch.randint(-max_frames, max_frames + 1, (len(log_mel),), generator=generator)
        )
    shift = int(torch.randint(-max_frames, max_frames + 1, (), generator=generator))
    return log_mel.roll(shift, dims=2)


def roll_clips(
    batch: Float[Tensor, "batch *channels time"], shifts: Int64[Tensor, " batch"]
) -> Float[Tensor, "batch *channels time"]:
    """Return each clip rolled circularly along its last axis by its own shift; positive = later."""
    length = batch.shape[-1]
    place = (torch.arange(length) - shifts[:, None]).remainder(length).to(batch.device)
    place = place.view(len(batch), *[1] * (batch.ndim - 2), length)
    return batch.gather(-1, place.expand(batch.shape))


def draw_gain(batch: int, limit_db: int, generator: torch.Generator) -> Float[Tensor, " batch"]:
    """Return a gain a clip: whole decibels, uniform from -``limit_db`` to ``limit_db`` - 1.

    The half-open range is EfficientAT's (Schmid, Koutini and Widmer, ICASSP 2023).
    """
    return torch.randint(-limit_db, limit_db, (batch,), generator=generator).float()


def gain(
    log_mel: Float[Tensor, "batch mels frames"], gain_db: Float[Tensor, " batch"], frontend: LogMelConfig
) -> Float[Tensor, "batch mels frames"]:
    """Return what the frontend would give if each clip's waveform were ``gain_db`` louder.

    Exact up to rounding: the frontend's offset is taken out before the mel energies are scaled and put back
    afterwards, so that silence stays silence and does not follow the gain. What lies on ``log_floor`` stays there.
    """
    per_unit = {"ln": 1.0, "log10": 1 / math.log(10), "db": 10 / math.log(10)}[frontend.log]
    factor = torch.exp(gain_db.to(log_mel) * (frontend.power / 20 * math.log(10))).view(-1, 1, 1)
    energy = (torch.exp(log_mel / per_unit) - frontend.log_offset).clamp_min(0)
    louder = energy * factor
    if frontend.log_floor:
        # float16 as stored: what was raised to the floor may come back a rounding above it.
        louder = louder.clamp_min(frontend.log_floor)
        louder = torch.where(energy <= frontend.log_floor * FLOOR_TOLERANCE, energy, louder)
    return torch.log(louder + frontend.log_offset) * per_unit


def draw_spans(
    batch: int, length: int, limit: int, generator: torch.Generator
) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
    """Return start and end of one span a clip: width uniform in 0..``limit``, start uniform where it fits."""
    width = torch.randint(0, limit + 1, (batch,), generator=generator)
    # A float64 below 1 times a count stays below the count: every start fits.
    place = torch.rand(batch, generator=generator, dtype=torch.float64)
    start = (place * (length - width + 1)).long()
    return start, start + width


def _mask(
    log_mel: Tensor,
    limit: int,
    fill: float,
    generator: torch.Generator,
    axis: int,
    per_clip: bool,
    in_place: bool = False,
) -> Tensor:
    length = log_mel.shape[axis]
    _check_limit(limit, length, "frequency_mask" if axis == 1 else "time_mask")
    if limit == 0:
        return log_mel
    start, end = draw_spans(log_mel.shape[0] if per_clip else 1, length, limit, generator)
    if log_mel.device.type == "cpu" and log_mel.dtype == torch.float32 and not log_mel.requires_grad:
        # A fifth of the time of a select by a mask, which reads and writes every value.
        masked = log_mel if in_place else log_mel.clone()
        # One clip, or the whole batch, at a time; the masked axis first.
        along = masked.numpy().swapaxes(1, axis)
        groups = along if per_clip else along.swapaxes(0, 1)[None]
        for group, first, last in zip(groups, start.tolist(), end.tolist(), strict=True):
            group[first:last] = fill
        return masked
    place = torch.arange(length)
    hidden = (place >= start[:, None]) & (place < end[:, None])
    hidden = hidden.unsqueeze(3 - axis).to(log_mel.device)
    # A third faster on a CPU than a copying masked_fill with the same broadcast mask.
    return log_mel.masked_fill_(hidden, fill) if in_place else torch.where(hidden, fill, log_mel)


def _check_limit(limit: int, length: int, name: str) -> None:
    if not 0 <= limit <= length:
        raise ConfigError(
            f"{name} cannot reach that far", expected=f"0 to {length}", got=limit,
            run=f"--set {WHERE_EXACT[name]}={length} or less",
        )  # fmt: skip
