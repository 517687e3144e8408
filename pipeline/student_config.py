"""The keys of a student: ``[student]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.section import Section


class StudentConfig(Section):
    """The small network."""

    name: str = Field("cnn4", description="cnn4, cnn4_wide, micronet_m0..m3, mobilevitv2_050/_075/_100")
    width: float = Field(1.0, gt=0, description="channel multiplier")
    embedding_dim: int | None = Field(
        None, gt=0, description="width of the embedding; default the network's own"
    )
    odd_size: Literal["pad", "resize"] = Field(
        "pad", description="MobileViT at odd maps: exportable symbolic pad, or the published bilinear resize"
    )
