"""What ``[augment]`` and ``[train]`` ask for, done to a batch of cached log-mels; drawn from seed, step, rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.config import LogMelConfig, TrainConfig
from pipeline.data import augment, mixing
from pipeline.data.mixing import Compare, Mix
from pipeline.data_config import AugmentConfig
from pipeline.errors import ConfigError

CLIPS, BATCH = 0, 1
SHARED_RANK = 0


@dataclass(frozen=True)
class AugmentedBatch:
    """Changed log-mels, and how their targets go with them.

    Attributes:
        log_mel: float32.
        mix: partners and share where the batch was mixed up, else None.
    """

    log_mel: Float[Tensor, "batch mels frames"]
    mix: Mix | None = None


class BatchAugmentation:
    """Roll in time, gain, mixup, Freq-MixStyle, masks: in this order, each where the recipe asks for it.

    A pure function of the batch, ``seed``, step and rank. Whether a batch is mixed up, and by how much, is the
    same on every rank, so that the ranks of a run compare the same targets at the same time; everything else
    is a rank's own draw.

    Args:
        train: sizes of masks and roll, and the seed.
        config: ``[augment]``.
        frontend: of the log-mels; gain needs its logarithm.
        mean: of the training rows' log-mels.
        deviation: theirs; Freq-MixStyle works on normalised log-mels.

    Raises:
        ConfigError: gain where the frontend standardises each waveform, which takes every gain out.

    Example:
        >>> change = BatchAugmentation(recipe.train, recipe.augment, recipe.embed.frontend, -8.0, 4.0)
        >>> changed = change(batch.spectrogram.float(), step=7)
    """

    def __init__(
        self,
        train: TrainConfig,
        config: AugmentConfig,
        frontend: LogMelConfig,
        mean: float,
        deviation: float,
    ) -> None:
        if config.gain_db and frontend.standardise:
            raise ConfigError(
                "augment.gain_db changes nothing: embed.frontend.standardise takes every gain out",
                expected=0, got=config.gain_db, run="--set augment.gain_db=0",
            )  # fmt: skip
        self.train, self.config, self.frontend = train, config, frontend
        self.mean, self.deviation = mean, deviation
        self.fill = mean if config.mask_fill == "mean" else config.mask_fill

    def __call__(
        self, log_mel: Float[Tensor, "batch mels frames"], step: int, rank: int = 0, part: int = 0
    ) -> AugmentedBatch:
        """Return the batch of ``step`` as the student sees it.

        Args:
            log_mel: float32, on any device.
            step: of the run, counted from 0.
            rank: of this process.
            part: number of the batch within its step, where gradients are accumulated.
        """
        train, config = self.train, self.config
        own = step_generator(train.seed, step, rank, part, CLIPS)
        changed = augment.time_roll(log_mel, train.roll_frames, own, per_clip=config.roll_per == "clip")
        if config.gain_db:
            decibels = augment.draw_gain(len(changed), config.gain_db, own)
            changed = augment.gain(changed, decibels, self.frontend)
        mix = self._mix(len(changed), step, part, own)
        if mix is not None:
            changed = mixing.mixup(changed, mix.partners, torch.full((len(changed),), mix.share))
        if config.freq_mixstyle_probability > 0:
            normalised = ((changed - self.mean) / self.deviation).unsqueeze(1)
            mixed = mixing.freq_mixstyle(
                normalised, config.freq_mixstyle_probability, config.freq_mixstyle_alpha, own
            )
            # Normalising and back is not the identity in float32: an unmixed batch stays what it was.
            changed = changed if mixed is normalised else mixed.squeeze(1) * self.deviation + self.mean
        changed = augment.spec_augment(
            changed, freq_mask_rows=train.freq_mask_rows, time_mask_frames=train.time_mask_frames,
            fill=self.fill, generator=own, freq_masks=config.freq_masks, time_masks=config.time_masks,
            per_clip=config.mask_per == "clip", in_place=changed is not log_mel,
        )  # fmt: skip
        return AugmentedBatch(changed, mix)

    def compare(
        self,
        objective: Compare,
        embedding: Float[Tensor, "batch dim"],
        index: Int[Tensor, " batch"],
        teacher: Float[Tensor, "batch teacher"],
        mix: Mix | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms as the batch's mix asks for: see ``mixing.mixed_loss``."""
        if mix is None:
            return objective(embedding, index, teacher)
        if self.config.mixup_target == "embedding":
            share = torch.full((len(teacher),), mix.share)
            return objective(embedding, index, mixing.mixup(teacher, mix.partners, share))
        return mixing.mixed_loss(objective, embedding, index, teacher, mix)

    def _mix(self, batch: int, step: int, part: int, own: torch.Generator) -> Mix | None:
        config = self.config
        if config.mixup_alpha == 0 or config.mixup_probability == 0:
            return None
        shared = step_generator(self.train.seed, step, SHARED_RANK, part, BATCH)
        if float(torch.rand((), generator=shared)) >= config.mixup_probability:
            return None
        share = float(mixing.beta(config.mixup_alpha, 1, shared))
        # One share a batch, as the paper's code draws it (Zhang et al., 2018): a relational loss has no rows of
        # its own to weigh. At least half, so that a clip stays itself.
        return Mix(torch.randperm(batch, generator=own), max(share, 1 - share))


def step_generator(seed: int, step: int, rank: int, part: int = 0, purpose: int = CLIPS) -> torch.Generator:
    """Return the generator of one step's draws: a pure function of its arguments, so nothing has to be saved."""
    key = np.random.SeedSequence([abs(seed), int(seed < 0), step, rank, part, purpose])
    return torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
