"""The keys of training: ``[train]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.section import Section


class TrainConfig(Section):
    """Stage 2."""

    control: Literal["none", "random", "labels"] = Field(
        "none", description="random = left at initialisation; labels = the same student on labels alone"
    )
    label_column: str | None = Field(None, description="clips.parquet column the labels control learns")
    steps: int = Field(2_000, ge=0)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    final_learning_rate_share: float = Field(0.005, ge=0, le=1)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(1e-3, ge=0)
    clip_norm: float | None = Field(5.0, gt=0, description="gradient norm; null = no clipping")
    amp: Literal["auto", "off", "bfloat16", "float16"] = Field(
        "auto", description="auto = bfloat16 where the device multiplies it faster, else off"
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="0 = no moving average of the weights")
    freq_mask_rows: int = Field(7, ge=0, description="SpecAugment: one band of up to this many mel rows")
    time_mask_frames: int = Field(14, ge=0, description="SpecAugment: one span of up to this many frames")
    roll_frames: int = Field(
        20, ge=0, description="batch rolled in time by up to this many frames either way"
    )
    seed: int = 0
    shuffle_rows: int = Field(8_192, ge=1, description="rows held by the shuffle buffer")
    validate_every: int = Field(500, ge=1, description="steps between validations and checkpoints")
    early_stopping: int = Field(
        0, ge=0, description="validations without a better loss; 0 = never stop early"
    )
    device: str = "cpu"
    threads: int = Field(1, ge=1, description="CPU threads of one run; several runs share the cores")
    tensorboard: bool = Field(False, description="also write TensorBoard event files (extra: tensorboard)")
