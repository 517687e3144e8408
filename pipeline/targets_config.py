"""The keys of what students learn: ``[targets]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.section import Section

# Keys that came after runs had been named by this section: they count only where they are not the default.
LATER_KEYS = (
    "whiten_power", "shrinkage", "seed", "head", "head_hidden", "head_dropout",
    "compression", "compression_hidden", "compression_dim", "compression_weight",
)  # fmt: skip


class TargetsConfig(Section):
    """What the teacher's cached embeddings become before any loss sees them; statistics from training rows only."""

    teachers: tuple[str, ...] = Field(
        (),
        description="arrays of the store to learn from: NAME, NAME:OUTPUT (beats:layer.3, passt:logits) or a "
        "digest; default embed.teacher's embedding",
    )
    fusion: Literal["concat", "mean", "heads"] = Field(
        "concat",
        description="several teachers side by side, each transformed by itself; their mean (logits); or each a "
        "target with a head of its own, the losses summed",
    )
    teacher_weights: tuple[float, ...] = Field(
        (),
        description="one a teacher: of its squared distances, in the mean, or of its losses; default equal",
    )
    transform: Literal["none", "standardise", "pca", "whiten", "random"] = Field(
        "whiten", description="random = Gaussian random projection of the standardised rows"
    )
    components: int | None = Field(
        128, gt=0, description="of each teacher: leading principal components kept, or random directions"
    )
    whiten_power: float = Field(
        0.5,
        ge=0,
        le=1,
        description="whiten multiplies component i by eigenvalue_i^-power: 0.5 = white, 0 = pca",
    )
    shrinkage: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of the eigenvalues that whiten divides by, to their mean: 0 = none, 1 = pca scaled",
    )
    std_floor: float = Field(1e-3, ge=0, description="added to each dimension's deviation")
    seed: int = Field(0, ge=0, description="of the random projection")
    head: Literal["linear", "mlp", "hint", "none"] = Field(
        "linear",
        description="from student to target: linear; mlp = S-SONDO's; hint = FitNets' regressor; none = equal "
        "widths",
    )
    head_hidden: int = Field(1_280, gt=0, description="hidden width of the mlp head")
    head_dropout: float = Field(0.2, ge=0, lt=1, description="dropout of the mlp head")
    compression: Literal["none", "linear", "mlp"] = Field(
        "none",
        description="teacher transformation trained by the labels' loss alone (train.label_column); students "
        "follow its output, which gets no gradient from them",
    )
    compression_dim: int | None = Field(
        None, gt=0, description="its output width; default the student's embedding width"
    )
    compression_hidden: int = Field(512, gt=0, description="hidden width of the mlp compression")
    compression_weight: float = Field(1.0, gt=0, description="of the teacher side's label loss")

    @model_validator(mode="after")
    def _possible(self) -> TargetsConfig:
        if self.transform == "random" and self.components is None:
            raise ValueError("transform random needs components: how many directions")
        return self

    def counted(self) -> dict[str, object]:
        """Return what a run's identity depends on: later keys only where they are not their default."""
        fields = type(self).model_fields
        values = self.model_dump(mode="json")
        for key in LATER_KEYS:
            if getattr(self, key) == fields[key].default:
                del values[key]
        return values
