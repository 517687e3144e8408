"""The keys of sampling (``[sampling]``) and augmentation (``[augment]``), and what a cached target allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.section import Section

Validity = Literal["exact", "approximate", "forbidden"]
VIEW_PARTS = ("background", "room", "device", "band", "gain")


@dataclass(frozen=True)
class Augmentation:
    """A change of a cached log-mel: whether its embedding still holds, and why."""

    validity: Validity
    reason: str


_NEEDS_SOUND = "stage 2 has no waveform to change"

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
    "speed": Augmentation("forbidden", "tempo and pitch are part of what the teacher hears"),
    "random_crop": Augmentation("forbidden", "another window is another sound, with another embedding"),
    "cutmix": Augmentation("forbidden", "the teacher never heard one clip pasted into another"),
    "reverberation": Augmentation("forbidden", "the teacher would hear the room"),
    "noise": Augmentation("forbidden", "the teacher would hear the noise"),
    "background": Augmentation("forbidden", "the teacher would hear the background"),
    "band_limit": Augmentation("forbidden", "the teacher would hear the missing band"),
    "equaliser": Augmentation("forbidden", "the teacher would hear the changed spectrum"),
    "distortion": Augmentation("forbidden", "the teacher would hear the distortion"),
    "wave_mix": Augmentation(
        "forbidden", f"{_NEEDS_SOUND}, and the teacher never heard the sum; augment.mixup_alpha mixes log-mels"
    ),
    "device_impulse_response": Augmentation(
        "forbidden",
        f"{_NEEDS_SOUND}: embed.views.device renders it, augment.view_target = 'clean' keeps the clean target",
    ),
    "mel_jitter": Augmentation("forbidden", f"{_NEEDS_SOUND}: another filterbank is another frontend"),
}  # fmt: skip

# What the field calls them elsewhere.
SPELLINGS = {
    "dir": "device_impulse_response",
    "dir_probability": "device_impulse_response",
    "reverse": "time_reversal",
    "reverb": "reverberation",
    "rir": "reverberation",
    "wavmix": "wave_mix",
    "time_crop": "random_crop",
    "crop": "random_crop",
    "speed_perturbation": "speed",
    "eq": "equaliser",
    "low_pass": "band_limit",
    "high_pass": "band_limit",
    "mask": "frequency_mask",
    "spec_augment": "frequency_mask",
}

WHERE_EXACT = {
    "frequency_mask": "train.freq_mask_rows",
    "time_mask": "train.time_mask_frames",
    "time_roll": "train.roll_frames",
    "gain": "augment.gain_db",
    "freq_mixstyle": "augment.freq_mixstyle_probability",
    "mixup": "augment.mixup_alpha",
}


class SamplingConfig(Section):
    """Which rows an epoch draws. Without any of these keys, every training row once."""

    balance: Literal["none", "labels", "clusters"] = Field(
        "none",
        description="labels = weight of a row is the sum over its labels of 1 / (label_offset + rows with that "
        "label); clusters = one over the rows of its cluster of teacher embeddings",
    )
    label_column: str = Field(
        "label", description="clips.parquet column that balance = labels looks at; several labels joined by ;"
    )
    label_offset: float = Field(
        100.0, ge=0, description="added to every label's rows, so that a rare one is not drawn without bound"
    )
    unlabelled: Literal["refuse", "one_label", "leave_out"] = Field(
        "refuse", description="rows without a label: an error, a label of their own, or never drawn"
    )
    clusters: int = Field(50, ge=2, description="clusters of teacher embeddings, by MiniBatchKMeans")
    cluster_fit: Literal["train", "all"] = Field(
        "train", description="rows that the clusters are fitted on; all = held-out rows too, as S-SONDO does"
    )
    cluster_fit_rows: int | None = Field(
        None,
        ge=2,
        description="rows drawn at random to fit the clusters on, all in memory; default every one",
    )
    cluster_seed: int = Field(42, ge=0, description="random_state of MiniBatchKMeans")
    max_repeats: float | None = Field(
        None, ge=1, description="draws of one row an epoch that weights may add up to; default no limit"
    )
    dataset_weights: dict[str, float] = Field(
        {}, description="dataset name to its share of the draws, relative; every dataset of the rows, or none"
    )
    view_weights: dict[str, float] = Field(
        {},
        description="view (clean, mix, texture, augmented, augmented:device, :room, :background, :band, :gain) to "
        "its share of the draws, relative; views not named are left out; none = all rows alike",
    )
    draws: Literal["independent", "stratified", "distinct"] = Field(
        "independent",
        description="independent = with replacement; stratified = the expected count rounded up or down; "
        "distinct = without replacement",
    )
    epoch_rows: int | None = Field(
        None, ge=1, description="rows drawn an epoch over all processes; default as many as may be drawn"
    )

    @property
    def weighted(self) -> bool:
        """Whether rows are drawn by weight, and not each once an epoch."""
        return bool(
            self.balance != "none" or self.dataset_weights or self.view_weights or self.epoch_rows is not None
        )

    def counted(self) -> dict[str, Any]:
        """Return the keys that differ from their defaults: what names a run that uses them."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="after")
    def _possible(self) -> SamplingConfig:
        for name in ("dataset_weights", "view_weights"):
            weights = getattr(self, name)
            if any(not 0 <= weight < float("inf") for weight in weights.values()):
                raise ValueError(f"{name}: a weight is below 0 or not finite")
            if weights and not sum(weights.values()):
                raise ValueError(f"{name}: every weight is 0, nothing would be drawn")
        for view in self.view_weights:
            kind, _, part = view.partition(":")
            if kind not in ("clean", "mix", "texture", "augmented") or (
                ":" in view and (kind != "augmented" or part not in VIEW_PARTS)
            ):
                known = [
                    "clean", "mix", "texture", "augmented", *(f"augmented:{part}" for part in VIEW_PARTS)
                ]  # fmt: skip
                raise ValueError(f"view_weights: no view {view!r}; known: {', '.join(known)}")
        if self.draws == "distinct" and self.weighted and self.epoch_rows is None:
            raise ValueError("draws = 'distinct' wants epoch_rows: all rows without replacement are all rows")
        if not self.weighted and (self.max_repeats is not None or self.draws != "independent"):
            raise ValueError(
                "max_repeats and draws are for weighted draws: set balance, dataset_weights, view_weights or "
                "epoch_rows"
            )
        return self


class AugmentConfig(Section):
    """How batches of cached log-mels are changed; masks' and rolls' sizes are ``train.*``. See docs/augmentation.md."""

    mask_fill: Literal["mean"] | float = Field(
        "mean",
        description="what masks write, in stored log-mel units; mean = the training rows' mean, 0 once normalised",
    )
    mask_per: Literal["clip", "batch"] = Field(
        "clip", description="masks drawn for each clip, or one for the whole batch"
    )
    freq_masks: int = Field(1, ge=0, description="masked bands, each of up to train.freq_mask_rows")
    time_masks: int = Field(1, ge=0, description="masked spans, each of up to train.time_mask_frames")
    roll_per: Literal["clip", "batch"] = Field(
        "batch", description="roll in time drawn for each clip, or one for the whole batch"
    )
    gain_db: int = Field(
        0, ge=0, description="each clip's gain: whole decibels from -gain_db to gain_db - 1; 0 = none"
    )
    freq_mixstyle_probability: float = Field(
        0.0, ge=0, le=1, description="share of batches with Freq-MixStyle; 0.4 as published"
    )
    freq_mixstyle_alpha: float = Field(0.3, gt=0, description="of its Beta distribution")
    mixup_alpha: float = Field(
        0.0, ge=0, description="of mixup's Beta distribution, 0.3 as published; 0 = no mixup"
    )
    mixup_probability: float = Field(1.0, ge=0, le=1, description="share of batches that are mixed")
    mixup_target: Literal["loss", "embedding"] = Field(
        "loss",
        description="loss = the objective for both whole targets, weighted; embedding = the mean of both, as EAsT",
    )
    view_target: Literal["own", "clean"] = Field(
        "own",
        description="target of an augmented view: what the teacher heard there, or its clean window's embedding",
    )

    def counted(self) -> dict[str, Any]:
        """Return the keys that differ from their defaults: what names a run that uses them."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="before")
    @classmethod
    def _allowed(cls, table: Any) -> Any:
        for key in table if isinstance(table, dict) else ():
            rule = AUGMENTATIONS.get(_named(key))
            if rule is None or key in cls.model_fields:
                continue
            name = _named(key)
            if rule.validity == "forbidden":
                raise ValueError(
                    f"{key} is forbidden on cached targets: {rule.reason}; what the teacher should hear "
                    "is embedded as a view of its own (embed.views)"
                )
            raise ValueError(f"{key} is {rule.validity}: set {WHERE_EXACT[name]}")
        return table


def _named(key: str) -> str:
    """Return the table's name for what a recipe may call it: with or without what is drawn of it."""
    for ending in ("", "_probability", "_alpha", "_db", "_semitones", "_share"):
        stem = key.removesuffix(ending) if ending else key
        name = SPELLINGS.get(stem, stem)
        if name in AUGMENTATIONS:
            return name
    return key
