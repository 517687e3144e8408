"""The keys of relations beyond the batch: ``[relations]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.section import Section


class RelationsConfig(Section):
    """What losses see of the teacher's space beside the batch: a memory, anchors (``loss.anchor``) and nearest
    neighbours (``loss.neighbour``), both made of the store's training rows once."""

    queue_rows: int = Field(
        0,
        ge=0,
        description="embeddings of earlier batches that relational losses see too (XBM, MoCo's queue)",
    )
    space: Literal["target", "teacher"] = Field(
        "target",
        description="where anchors and neighbours are: the targets before compression, or the rows as stored",
    )
    anchors: int = Field(64, ge=2, description="points that loss.anchor measures distances to")
    anchor_kind: Literal["centres", "rows"] = Field(
        "centres", description="k-means centres of the training rows, or training rows drawn at random"
    )
    anchor_momentum: float = Field(
        0.9, ge=0, lt=1, description="how slowly the student's side of a centre follows its rows"
    )
    neighbours: int = Field(
        10, ge=1, description="nearest training rows (cosine) of each, that loss.neighbour draws near"
    )
    neighbour_temperature: float = Field(0.1, gt=0, description="its softmax of cosines is divided by this")
    neighbour_search: Literal["auto", "exact", "approximate"] = Field(
        "auto",
        description="auto = exact up to 100,000 rows and on CUDA, else approximate (extra: neighbours)",
    )
    seed: int = Field(0, ge=0, description="of the anchors")

    def counted(self, *, anchor: bool, neighbour: bool) -> dict[str, object]:
        """Return what a run's identity depends on: keys that are used and not their default.

        Args:
            anchor: whether the loss looks at anchors; neighbour: whether at neighbours.
        """
        used = {
            "queue_rows": self.queue_rows > 0,
            "space": anchor or neighbour,
            **dict.fromkeys(("anchors", "anchor_kind", "anchor_momentum", "seed"), anchor),
            **dict.fromkeys(("neighbours", "neighbour_temperature", "neighbour_search"), neighbour),
        }
        fields, values = type(self).model_fields, self.model_dump(mode="json")
        return {
            key: value
            for key, value in values.items()
            if used[key] and getattr(self, key) != fields[key].default
        }
