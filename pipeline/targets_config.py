"""The keys of what students learn: ``[targets]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.section import Section


class TargetsConfig(Section):
    """What the teacher's cached embeddings become before any loss sees them; statistics from training rows only."""

    teachers: tuple[str, ...] = Field(
        (),
        description="arrays of the store to learn from: NAME, NAME:OUTPUT (beats:layer.3, passt:logits) or a "
        "digest; default embed.teacher's embedding",
    )
    fusion: Literal["concat", "mean"] = Field(
        "concat",
        description="several teachers side by side, each transformed by itself; or their mean (logits)",
    )
    teacher_weights: tuple[float, ...] = Field(
        (), description="one a teacher: of its squared distances, or in the mean; default equal"
    )
    transform: Literal["none", "standardise", "pca", "whiten"] = "whiten"
    components: int | None = Field(
        128, gt=0, description="leading principal components kept by pca and whiten, of each teacher"
    )
    std_floor: float = Field(1e-3, ge=0, description="added to each dimension's deviation")
