"""The keys of a student: ``[student]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.section import Section


class StudentConfig(Section):
    """The small network."""

    name: str = Field("cnn4", description="a name of `ossicle students`")
    width: float = Field(1.0, gt=0, description="channel multiplier")
    embedding_dim: int | None = Field(
        None, gt=0, description="width of the embedding; default the network's own"
    )
    odd_size: Literal["pad", "resize"] = Field(
        "pad", description="MobileViT at odd maps: exportable symbolic pad, or the published bilinear resize"
    )
    weights: Path | None = Field(
        None, description="checkpoint to start from: a published file, or a finished run's folder"
    )
    trust_sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of `weights` where the published file's is not known here",
    )
    options: dict[str, Any] = Field({}, description="the student's own keys, listed in docs/students.md")
    causal: bool = Field(
        False, description="look back only, so that the student can listen to a stream (docs/students.md)"
    )
    memory_frames: int | None = Field(
        None,
        gt=0,
        description="causal: frames after which running means forget; default they never do, as on a clip",
    )

    @model_validator(mode="after")
    def _possible(self) -> StudentConfig:
        if self.memory_frames is not None and not self.causal:
            raise ValueError("memory_frames is of causal students: set causal = true")
        return self

    def counted(self) -> dict[str, Any]:
        """Return what of it names a run: not where its weights lie, which count by content.

        Keys that came later count only where they are used, so that older runs keep their names.
        """
        used = self.model_dump(mode="json", exclude={"weights", "trust_sha256"})
        for key in ("options", "causal", "memory_frames"):
            if not used[key]:
                del used[key]
        return used
