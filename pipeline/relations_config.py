"""The keys of relations beyond the batch: ``[relations]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.section import Section


class RelationsConfig(Section):
    """What the losses see of the teacher's space beside the batch; all off by default."""

    queue_rows: int = Field(
        0,
        ge=0,
        description="embeddings of earlier batches that the relational losses see too (XBM, MoCo's queue)",
    )
    anchors: int = Field(
        0, ge=0, description="points of the teacher's space to measure distances to; 0 = off"
    )
    anchor_kind: Literal["centres", "rows"] = Field(
        "centres",
        description="k-means centres of the training rows' targets, or training rows drawn at random",
    )
    anchor_weight: float = Field(1.0, ge=0, description="of the anchor loss")
    anchor_momentum: float = Field(
        0.9, ge=0, lt=1, description="how slowly the student's side of an anchor follows its rows"
    )
    neighbours: int = Field(0, ge=0, description="nearest training rows of each one, precomputed; 0 = off")
    neighbour_weight: float = Field(1.0, ge=0, description="of the neighbour loss")
    neighbour_temperature: float = Field(0.1, gt=0, description="its softmax of cosines is divided by this")
    seed: int = Field(0, ge=0, description="of the anchors")

    @model_validator(mode="after")
    def _possible(self) -> RelationsConfig:
        if self.anchors == 1:
            raise ValueError("anchors = 1 relates nothing: give at least 2")
        return self

    @property
    def precomputed(self) -> bool:
        """Whether something has to be made of the store's training rows first."""
        return self.anchors > 0 or self.neighbours > 0

    @property
    def on(self) -> bool:
        """Whether any of it is used."""
        return self.precomputed or self.queue_rows > 0
