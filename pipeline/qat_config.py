"""The keys of ``[qat]``: quantisation-aware distillation of trained runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.section import Section

INCIDENTAL_KEYS = frozenset({"device", "threads"})


class QatConfig(Section):
    """``ossicle qat``: fine-tune finished runs through int8's rounding, on cached targets alone."""

    steps: int = Field(300, ge=1, description="updates of the weights and of the rounding's steps")
    batch_size: int | None = Field(None, ge=1, description="rows a step; default train.batch_size")
    micro_batch_size: int | None = Field(
        None, ge=1, description="rows embedded with gradients at a time; default all"
    )
    learning_rate: float = Field(2e-4, gt=0)
    step_learning_rate_share: float = Field(
        5.0,
        ge=0,
        description="the rounding's steps learn at this multiple of the rate; 0 = they stay as calibrated. They are "
        "trained as logarithms: the rate is their relative change",
    )
    warmup_steps: int = Field(20, ge=0)
    final_learning_rate_share: float = Field(
        0.01, ge=0, le=1, description="of the rate, where its cosine ends"
    )
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(5.0, gt=0, description="gradient norm; null = no clipping")
    teacher_weight: float = Field(
        1.0,
        ge=0,
        description="of the run's own objective on the cached teacher; runs that learnt from labels go without",
    )
    student_weight: float = Field(
        1.0,
        ge=0,
        description="of the distance to the float32 student's own embedding of the same batch, as a share of its "
        "variance",
    )
    augment: Literal["recipe", "none"] = Field(
        "recipe", description="change the log-mels as the recipe does, or leave them as stored"
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="0 = no moving average of the weights")
    validate_every: int = Field(100, ge=1, description="steps between validations and checkpoints")
    early_stopping: int = Field(
        0, ge=0, description="validations without a lower loss; 0 = never stop early, keep the last weights"
    )
    seed: int = 0
    device: str = "cpu"
    threads: int = Field(1, ge=1, description="CPU threads of one run; several runs share the cores")

    @model_validator(mode="after")
    def _possible(self) -> QatConfig:
        if not self.teacher_weight and not self.student_weight:
            raise ValueError("teacher_weight and student_weight are both 0: nothing is followed")
        return self

    def counted(self) -> dict[str, object]:
        """Return what the trained weights depend on."""
        return self.model_dump(mode="json", exclude=set(INCIDENTAL_KEYS))
