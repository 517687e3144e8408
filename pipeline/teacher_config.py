"""The keys of a teacher: ``[embed.teacher]``, ``[[embed.more_teachers]]`` and ``[finetune.teacher]``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.section import Section


class TeacherConfig(Section):
    """The heavy model that is run once."""

    name: str = Field(
        "aisfx", description="a name of `ossicle teachers`, or run:FOLDER for a finished run of yours"
    )
    weights: Path | None = Field(
        None, description="checkpoint file, or name of a fetched checkpoint, in place of the teacher's first"
    )
    trust_sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of `weights` where the published file's is not known here",
    )
    options: dict[str, Any] = Field({}, description="the teacher's own keys, listed in docs/teachers.md")
    outputs: tuple[str, ...] = Field(
        ("embedding",), min_length=1, description="what is cached: embedding, logits, frames, layer.N"
    )
    frame_rate_hz: float | None = Field(
        None, gt=0, description="rate that frames are averaged to; default the teacher's own"
    )
    logits_top_k: int | None = Field(
        None, ge=1, description="keep this many largest logits, and the log-sum of the rest; default all"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto = bfloat16 where the device multiplies it faster than float32, else float32"
    )
    device: str = Field("cpu", description="cpu, cuda or cuda:N")
    batch_size: int = Field(32, ge=1, description="windows a forward pass")

    @model_validator(mode="after")
    def _possible(self) -> TeacherConfig:
        known = re.compile(r"embedding|logits|frames|layer\.\d+")
        for output in self.outputs:
            if not known.fullmatch(output):
                raise ValueError(f"unknown output {output!r}: one of embedding, logits, frames, layer.N")
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError("an output is listed twice")
        return self
