"""The keys of ``[report]``: which clips can be heard on the site."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.section import Section


class ReportConfig(Section):
    """Sounds of the report's site."""

    audio: Literal["copy", "embed", "none"] = Field(
        "copy",
        description="clips that the student gets most wrong: copied beside the site, inside its pages, or not at all",
    )
    audio_clips: int = Field(6, ge=0, description="such clips a task")
    audio_megabytes: float = Field(20.0, gt=0, description="of all clips together; further ones are left out")
