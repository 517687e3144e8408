"""From a batch of cached waveforms to what the network hears: augmentation, then the log-mel of a student."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline.audio.impulse import ResponseFolder, convolve
from pipeline.config import FinetuneConfig
from pipeline.data.augment import spec_augment
from pipeline.data.mixing import draw_mixup, freq_mixstyle, mixup
from pipeline.frontends.log_mel import LogMel


class LabelMixer(Protocol):
    """Told by the augmentation which labels go with a mixed batch."""

    def mix(
        self, partners: Int64[Tensor, " batch"] | None, share: Float[Tensor, " batch"] | None
    ) -> None: ...


class Augmentation:
    """Device impulse response, roll in time, log-mel, mixup, Freq-MixStyle, masks: in this order.

    Drawn anew for every batch, from the run's one generator: DIR and roll a clip, Freq-MixStyle a batch (Schmid
    et al., DCASE 2023), on the log-mel normalised by ``mean`` and ``std``.

    Args:
        config: ``[finetune]``.
        log_mel: a student's frontend; None for a teacher, which hears the waveform, and for what was made before.
        is_log_mel: the network hears log-mels.
        rate_hz: of the waveforms.
        reached: clips that DIR may reach, by their row.
        statistics: mean and standard deviation of a student's log-mel.
        mixer: told of mixup's partners.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        log_mel: LogMel | None,
        is_log_mel: bool,
        rate_hz: int,
        reached: Bool[np.ndarray, " clips"],
        statistics: tuple[float, float],
        mixer: LabelMixer,
    ) -> None:
        self.config, self.log_mel, self.rate_hz, self.mixer = config, log_mel, rate_hz, mixer
        self.is_log_mel = is_log_mel
        self.mean, self.std = statistics
        self.reached = reached
        self.responses = _responses(config.dir_folder) if config.dir_probability > 0 else None
        self.index = torch.zeros(0, dtype=torch.int64)

    def note(self, index: Int64[Tensor, " batch"]) -> None:
        """Say which rows the next batch holds."""
        self.index = index

    @property
    def changes_waveforms(self) -> bool:
        """Whether log-mels, or embeddings, cannot be made before."""
        return self.config.dir_probability > 0 or self.config.roll_ms > 0

    def __call__(self, waveforms: Float[Tensor, "batch ..."], generator: torch.Generator) -> Tensor:
        """Return the network's input: (batch, samples), or (batch, mels, frames) for a student.

        ``note`` was told of the batch's rows before.
        """
        config = self.config
        heard = self._rolled(self._through_devices(waveforms, generator), generator)
        if self.log_mel is not None:
            heard = self.log_mel(heard)
        self.mixer.mix(None, None)
        if config.mixup_alpha > 0:
            partners, share = draw_mixup(len(heard), config.mixup_alpha, generator)
            heard = mixup(heard, partners, share)
            self.mixer.mix(partners, share)
        if not self.is_log_mel:
            return heard
        if config.freq_mixstyle_probability > 0:
            normalised = (heard - self.mean) / self.std
            mixed = self.mixstyle(normalised, generator)
            heard = mixed * self.std + self.mean
        return spec_augment(
            heard,
            freq_mask_rows=config.freq_mask_rows,
            time_mask_frames=config.time_mask_frames,
            fill=self.mean,
            generator=generator,
        )

    def mixstyle(
        self, normalised: Float[Tensor, "batch mels frames"], generator: torch.Generator
    ) -> Float[Tensor, "batch mels frames"]:
        """Return normalised log-mels after Freq-MixStyle, where the batch's draw says so."""
        config = self.config
        mixed = freq_mixstyle(
            normalised[:, None], config.freq_mixstyle_probability, config.freq_mixstyle_alpha, generator
        )
        return mixed[:, 0]

    def _through_devices(self, waveforms: Tensor, generator: torch.Generator) -> Tensor:
        if self.responses is None:
            return waveforms
        drawn = torch.rand(len(waveforms), generator=generator) < self.config.dir_probability
        chosen = torch.randint(len(self.responses.responses), (len(waveforms),), generator=generator)
        reached = torch.from_numpy(self.reached[self.index.numpy()])
        rows = torch.nonzero(drawn & reached)[:, 0].tolist()
        if not rows:
            return waveforms
        made = waveforms.clone()
        for row in rows:
            response = self.responses.waveform(
                self.responses.responses[int(chosen[row])].digest, self.rate_hz
            )
            sound = waveforms[row].cpu().numpy()
            made[row] = torch.from_numpy(convolve(sound, response)).to(waveforms)
        return made

    def _rolled(self, waveforms: Tensor, generator: torch.Generator) -> Tensor:
        reach = round(self.config.roll_ms / 1_000 * self.rate_hz)
        if reach == 0:
            return waveforms
        shifts = torch.randint(-reach, reach + 1, (len(waveforms),), generator=generator).tolist()
        return torch.stack([one.roll(shift) for one, shift in zip(waveforms, shifts, strict=True)])


def _responses(folder: Path | None) -> ResponseFolder:
    assert folder is not None
    return ResponseFolder(folder, "finetune.dir_folder")


def spectral_statistics(
    log_mel: LogMel, waveforms: np.ndarray, rows: Int64[np.ndarray, " rows"], batch_size: int
) -> tuple[float, float]:
    """Return mean and standard deviation of the log-mel of ``rows``, summed in float64."""
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, len(rows), batch_size):
        part = log_mel(torch.from_numpy(waveforms[rows[start : start + batch_size]])).double()
        count += part.numel()
        total += float(part.sum())
        squares += float(part.square().sum())
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5
