"""The keys of training: ``[train]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.section import Section

# Keys that came after runs had been named by this section: they count only where they are not the default.
LATER_KEYS = (
    "start_from", "frozen_backbone", "optimiser", "schedule", "ramp_down_start_share", "ramp_down_share",
    "milestone_shares", "milestone_factor", "learning_rate_shares", "micro_batch_size", "batch_norm",
    "swa_start_share", "swa_every", "early_stopping_metric", "probe_column", "bad_batches", "rank_rows",
    "label_kind", "label_smoothing",
)  # fmt: skip
# What a run's numbers do not depend on: where it runs, how many threads it uses, who is told.
INCIDENTAL_KEYS = frozenset({"device", "threads", "compile", "tensorboard", "mlflow"})


class TrainConfig(Section):
    """Stage 2."""

    control: Literal["none", "random", "labels", "teacher_lr"] = Field(
        "none",
        description="random = left at initialisation; labels = the same student on labels alone; teacher_lr = no "
        "student, a logistic regression on the teacher's embeddings",
    )
    label_column: str | None = Field(
        None, description="clips.parquet column that labels are read from; default label"
    )
    label_kind: Literal["cross_entropy", "bce"] = Field(
        "cross_entropy", description="one class a row; or several, joined by ;"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each label spread over all classes, in the labels control and loss.labels",
    )
    start_from: str | None = Field(
        None,
        pattern=r"^run:.+",
        description="run:FOLDER (may end in *): a finished run whose student, normalisation included, is where "
        "training starts",
    )
    frozen_backbone: bool = Field(
        False,
        description="the student is left as it is, batch-norm statistics too; the head alone is trained",
    )
    steps: int = Field(2_000, ge=0)
    batch_size: int = Field(64, ge=1, description="rows a step, over all processes")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="rows of one process embedded with gradients at a time; the loss sees the whole batch; "
        "default all",
    )
    optimiser: Literal["adamw", "adam", "sgd"] = Field("adamw", description="sgd has a momentum of 0.9")
    learning_rate: float = Field(2e-3, gt=0)
    learning_rate_shares: dict[str, float] = Field(
        {},
        description='parameter groups: a prefix of parameter names ("student", "student.backbone.layers.0", '
        '"objective.head") to a factor of the learning rate; 0 = frozen; the longest prefix counts',
    )
    schedule: Literal["cosine", "ramp_down", "step", "constant"] = Field(
        "cosine",
        description="after the warm-up: cosine; ramp_down = exponential warm-up, flat, linear down, flat "
        "(EfficientAT, PaSST); step = times milestone_factor at each milestone; constant",
    )
    final_learning_rate_share: float = Field(
        0.005, ge=0, le=1, description="of the learning rate, where cosine and ramp_down end"
    )
    warmup_steps: int = Field(100, ge=0)
    ramp_down_start_share: float = Field(0.4, ge=0, le=1, description="of the steps, before the rate falls")
    ramp_down_share: float = Field(0.475, gt=0, le=1, description="of the steps, while it falls")
    milestone_shares: tuple[float, ...] = Field(
        (0.5, 0.75), description="of the steps, after which the rate is lowered"
    )
    milestone_factor: float = Field(
        0.1, gt=0, le=1, description="the rate is multiplied by this at each milestone"
    )
    weight_decay: float = Field(1e-3, ge=0)
    clip_norm: float | None = Field(5.0, gt=0, description="gradient norm; null = no clipping")
    amp: Literal["auto", "off", "bfloat16", "float16"] = Field(
        "auto", description="auto = bfloat16 where the device multiplies it faster, else off"
    )
    compile: Literal["auto", "off", "on"] = Field(
        "auto",
        description="torch.compile the student; auto = off on the CPU, on CUDA where a trial at the start shows "
        "that it pays within the run",
    )
    batch_norm: Literal["synchronised", "local", "frozen"] = Field(
        "synchronised",
        description="statistics over the batch of all processes, over each one's part, or left as they are",
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="0 = no moving average of the weights")
    swa_start_share: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="of the steps, after which weights are averaged equally (SWA); null = not averaged",
    )
    swa_every: int = Field(1, ge=1, description="steps between weights that SWA averages")
    freq_mask_rows: int = Field(7, ge=0, description="SpecAugment: one band of up to this many mel rows")
    time_mask_frames: int = Field(14, ge=0, description="SpecAugment: one span of up to this many frames")
    roll_frames: int = Field(
        20, ge=0, description="batch rolled in time by up to this many frames either way"
    )
    seed: int = 0
    shuffle_rows: int = Field(8_192, ge=1, description="rows held by the shuffle buffer")
    rank_rows: Literal["slice", "span"] = Field(
        "slice",
        description="several processes: slice = each reads every batch and embeds its part, so that their number "
        "changes nothing; span = each reads its own part of an epoch",
    )
    validate_every: int = Field(500, ge=1, description="steps between validations and checkpoints")
    probe_column: str | None = Field(
        None, description="clips.parquet column that a linear probe of each validation tells from embeddings"
    )
    early_stopping: int = Field(
        0, ge=0, description="validations without a better early_stopping_metric; 0 = never stop early"
    )
    early_stopping_metric: Literal["loss", "neighbour_overlap", "probe_accuracy"] = Field(
        "loss", description="which figure of the validation counts, for stopping and for the weights kept"
    )
    bad_batches: int = Field(
        0, ge=0, description="batches of non-finite loss or gradient that are skipped before the run fails"
    )
    device: str = "cpu"
    threads: int = Field(1, ge=1, description="CPU threads of one run; several runs share the cores")
    tensorboard: bool = Field(False, description="also write TensorBoard event files (extra: tensorboard)")
    mlflow: str | None = Field(
        None,
        description="also log to this MLflow tracking URI: sqlite:///mlflow.db or a server's address (extra: mlflow)",
    )

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        if self.ema_decay and self.swa_start_share is not None:
            raise ValueError("ema_decay and swa_start_share are two averages of the weights: give one")
        if self.early_stopping and self.early_stopping_metric == "probe_accuracy" and not self.probe_column:
            raise ValueError("early_stopping_metric probe_accuracy wants probe_column")
        if any(not 0 < share < 1 for share in self.milestone_shares):
            raise ValueError("milestone_shares are shares of the steps, each between 0 and 1")
        if any(share < 0 for share in self.learning_rate_shares.values()):
            raise ValueError("a factor of learning_rate_shares is below 0")
        return self

    def counted(self) -> dict[str, object]:
        """Return what a run's identity depends on: later keys only where they are not their default."""
        values = self.model_dump(mode="json", exclude=set(INCIDENTAL_KEYS))
        for key in LATER_KEYS:
            if getattr(self, key) == type(self).model_fields[key].default:
                del values[key]
        return values
