"""The keys of ``[finetune]``: a teacher trained on labels before it embeds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.section import Section
from pipeline.teacher_config import TeacherConfig


class FinetuneConfig(Section):
    """``ossicle finetune``: the recipe's runs are the members; each is trained once for every held-out fold."""

    teacher: TeacherConfig | None = Field(
        None,
        description="teacher to fine-tune; default the recipe's [student] from scratch on [embed.frontend]",
    )
    trained: Literal["whole", "head"] = Field(
        "whole", description="whole = network and classifier; head = a linear classifier on a frozen teacher"
    )
    label_column: str = Field("label", description="manifest column, or dataset's own column, that is learnt")
    held_out_folds: tuple[int, ...] = Field(
        (),
        description="folds held out one after the other; none = train on split train, score split validation",
    )
    clip_seconds: float | None = Field(
        None,
        gt=0,
        description="clips are cut or padded to this; default the teacher's window, or the longest clip",
    )
    steps: int = Field(1_000, ge=1)
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate_share: float = Field(0.005, ge=0, le=1)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(1e-3, ge=0)
    clip_norm: float | None = Field(5.0, gt=0, description="gradient norm; null = no clipping")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each target spread over all classes"
    )
    dir_probability: float = Field(
        0.0, ge=0, le=1, description="share of clips convolved with a device impulse response (DIR)"
    )
    dir_folder: Path | None = Field(None, description="folder of device impulse responses")
    dir_only: dict[str, tuple[str, ...]] = Field(
        {}, description='clips that DIR may reach, by column: {source_label = ["a"]}; none = all'
    )
    freq_mixstyle_probability: float = Field(
        0.0, ge=0, le=1, description="share of batches with Freq-MixStyle; 0.4 as published"
    )
    freq_mixstyle_alpha: float = Field(0.3, gt=0, description="of its Beta distribution")
    mixup_alpha: float = Field(0.0, ge=0, description="of mixup's Beta distribution; 0 = no mixup")
    roll_ms: float = Field(
        0.0, ge=0, description="each clip is rolled in time by up to this many milliseconds; 125 as published"
    )
    freq_mask_rows: int = Field(0, ge=0, description="SpecAugment: one band of up to this many mel rows")
    time_mask_frames: int = Field(0, ge=0, description="SpecAugment: one span of up to this many frames")
    validate_every: int = Field(200, ge=1, description="steps between validations and checkpoints")
    amp: Literal["auto", "off", "bfloat16", "float16"] = Field(
        "off", description="auto = bfloat16 where the device multiplies it faster, else off"
    )
    device: str = "cpu"
    threads: int = Field(1, ge=1, description="CPU threads")

    @model_validator(mode="after")
    def _possible(self) -> FinetuneConfig:
        if self.trained == "head" and self.teacher is None:
            raise ValueError(
                "trained = 'head' wants finetune.teacher: a student from scratch has nothing to freeze"
            )
        if self.dir_probability > 0 and self.dir_folder is None:
            raise ValueError("dir_probability wants dir_folder, a folder of device impulse responses")
        if len(set(self.held_out_folds)) < len(self.held_out_folds):
            raise ValueError("a fold is held out twice")
        if self.teacher is not None and (self.freq_mask_rows or self.time_mask_frames):
            raise ValueError(
                "freq_mask_rows and time_mask_frames are for students: a teacher hears waveforms"
            )
        if self.trained == "head" and self.freq_mixstyle_probability:
            raise ValueError(
                "freq_mixstyle_probability is for trained = 'whole': a frozen teacher is not changed"
            )
        return self
