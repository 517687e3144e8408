"""The keys of the objective: ``[loss]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.section import Section


class LossConfig(Section):
    """Weights of the loss terms; a term of weight 0 is not computed."""

    distance: float = Field(0.0, ge=0, description="distance-wise: RKD-D, Park et al., CVPR 2019")
    angle: float = Field(0.0, ge=0, description="angle-wise: RKD-A, Park et al., CVPR 2019")
    cosine: float = Field(0.0, ge=0, description="cosine-wise: the two cosine-similarity matrices")
    feature: float = Field(
        1.0, ge=0, description="feature-wise: projected embedding against its target, row by row"
    )
    cosine_kind: Literal["mse", "smooth_l1", "l1"] = "mse"
    feature_kind: Literal["cosine", "mse", "l1", "smooth_l1"] = "cosine"
    relational_on: Literal["embedding", "projection"] = Field(
        "embedding", description="where the relational terms look: the student's embedding or its projection"
    )

    @model_validator(mode="after")
    def _possible(self) -> LossConfig:
        if self.distance + self.angle + self.cosine + self.feature == 0:
            raise ValueError("every loss weight is 0: give at least one of distance, angle, cosine, feature")
        return self
