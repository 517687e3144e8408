"""The keys of ``[scenes]``: spatial scenes in DEAR's layout from any speech and background manifests."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from pipeline.section import Section
from pipeline.view_config import ClipFilter

Range = tuple[float, float]


class SceneRoomsConfig(Section):
    """Shoebox rooms by image sources with a diffuse tail; outdoors, one reflecting ground."""

    count: int = Field(300, ge=2, description="rooms in all, shared out to development and test")
    length_metres: Range = Field((3.0, 9.0), description="shortest and longest room")
    width_metres: Range = Field((3.0, 7.0), description="narrowest and widest room")
    height_metres: Range = Field((2.4, 3.6), description="lowest and highest ceiling")
    rt60_seconds: Range = Field(
        (0.2, 0.9), description="aimed at by the walls' absorption; the label is what the response then has"
    )
    distance_metres: Range = Field(
        (0.5, 4.5), description="microphone to each source, as far as the room goes"
    )
    image_order: int = Field(
        15, ge=4, le=30, description="reflections followed one by one; later ones are a decaying noise"
    )

    @model_validator(mode="after")
    def _possible(self) -> SceneRoomsConfig:
        for name in ("length_metres", "width_metres", "height_metres", "rt60_seconds", "distance_metres"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} wants 0 < low <= high, not {low}, {high}")
        for name in ("length_metres", "width_metres", "height_metres"):
            if getattr(self, name)[0] < 1.5:
                raise ValueError(f"{name}: a room of less than 1.5 m has no place for sources")
        if self.rt60_seconds[1] > 10:
            raise ValueError(f"rt60_seconds of {self.rt60_seconds[1]} s is no room's")
        return self


class SpeechFilter(ClipFilter):
    """The clips that speak."""

    kinds: tuple[str, ...] = Field(("speech",), description="only clips of these kinds; none = all")


class BackgroundFilter(ClipFilter):
    """The clips behind them."""

    kinds: tuple[str, ...] = Field(
        ("ambience", "effects", "drums"), description="only clips of these kinds; none = all"
    )


class ScenesConfig(Section):
    """``ossicle scenes``: tracks, their material and their labels (docs/scenes.md)."""

    tracks: int = Field(200, ge=2, le=99_999, description="tracks of both splits together")
    seconds: int = Field(30, ge=1, le=600, description="of a track; DEAR's have 30")
    sample_rate_hz: int = Field(48_000, ge=16_000, le=192_000)
    test_share: float = Field(1 / 3, gt=0, lt=1, description="of tracks, speakers, recordings and rooms")
    seed: int = Field(0, ge=0, description="of everything that is drawn")
    speech_manifest: Path | None = Field(
        None, description="folder of a finished manifest that holds the speech; default the recipe's own"
    )
    background_manifest: Path | None = Field(
        None, description="folder of a finished manifest that holds the backgrounds; default the recipe's own"
    )
    speech: SpeechFilter = SpeechFilter()
    background: BackgroundFilter = BackgroundFilter()
    min_sample_rate_hz: int = Field(
        32_000,
        ge=1,
        description="clips of a lower rate are left out: a missing upper band would tell speech from background",
    )
    min_background_seconds: float = Field(1.0, gt=0, description="shorter backgrounds are left out")
    environments: dict[str, str] = Field(
        {},
        description="label or dataset of a background to its environmentClass; default the label, or dataset",
    )
    rooms: SceneRoomsConfig = SceneRoomsConfig()
    outdoor_share: float = Field(0.4, ge=0, le=1, description="of the tracks with speech")
    noise_share: float = Field(
        0.15, ge=0, lt=1, description="tracks of procedural noise that carry stationaryOrTransientNoise alone"
    )
    speakers: tuple[float, float, float] = Field(
        (0.5, 0.3, 0.2), description="shares of tracks with 1, 2 and 3 target speakers"
    )
    snr_db: Range = Field(
        (-5.0, 20.0), description="aimed at over the seconds with speech; labels are measured"
    )
    level_dbfs: Range = Field((-35.0, -20.0), description="of the mix, drawn so that loudness is no cue")
    microphone_noise_dbfs: float = Field(-80.0, le=-40, description="white, part of the background")
    stationary_below_db: float = Field(
        3.0, gt=0, description="noise whose 125 ms levels deviate less (standard deviation) is stationary"
    )
    transient_above_db: float = Field(
        5.0, gt=0, description="noise whose 125 ms levels deviate more is transient; between: no label"
    )
    stems: bool = Field(
        False, description="also write target, background and impulse responses of each track"
    )
    workers: int = Field(0, ge=0, description="processes; 0 = one a core")

    @model_validator(mode="after")
    def _possible(self) -> ScenesConfig:
        if min(self.speakers) < 0 or not sum(self.speakers):
            raise ValueError("speakers: three shares that are not all 0")
        for name in ("snr_db", "level_dbfs"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise ValueError(f"{name} wants low <= high")
        if self.level_dbfs[1] > 0:
            raise ValueError("level_dbfs above 0 clips")
        if self.stationary_below_db > self.transient_above_db:
            raise ValueError("stationary_below_db is above transient_above_db: a noise would be both")
        if not 1 <= round(self.tracks * self.test_share) <= self.tracks - 1:
            raise ValueError(f"test_share {self.test_share:g} of {self.tracks} tracks leaves a split empty")
        return self
