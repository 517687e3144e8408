"""The keys of ``embed.views``: which views are embedded beside the clean windows, and how they are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.section import Section

# What named a store before there were augmented views; a store without them keeps its name.
FIRST_KEYS = frozenset(
    {"mixes", "textures", "seed", "snr_db", "level_dbfs", "eq_probability", "eq_gain_db", "speech_weight"}
)

MIN_SIDE_METRES = 1.5


class ClipFilter(Section):
    """Which clips, by what the manifest says of them; an empty list takes all, and a clip must pass each."""

    datasets: tuple[str, ...] = Field((), description="only clips of these datasets; none = all")
    kinds: tuple[str, ...] = Field((), description="only these kinds (speech, music, ...); none = all")
    labels: tuple[str, ...] = Field((), description="only clips of these labels; none = all")


class BackgroundConfig(Section):
    """Another clip under the window: speech over background."""

    probability: float = Field(0.0, ge=0, le=1, description="share of augmented views with a background")
    snr_db: tuple[float, float] = Field(
        (0.0, 20.0), description="window above background, both over active frames, reverberation included"
    )
    manifest: Path | None = Field(
        None, description="folder of another finished manifest that backgrounds come from; default this one"
    )
    clips: ClipFilter = ClipFilter()


class RoomConfig(Section):
    """A shoebox room by the image source method (extra: rooms); the background stands in the same room."""

    probability: float = Field(0.0, ge=0, le=1, description="share of augmented views in a room")
    count: int = Field(200, ge=1, description="different rooms a split, each simulated once a worker")
    length_metres: tuple[float, float] = Field((3.0, 10.0), description="longer side of the floor")
    width_metres: tuple[float, float] = Field((2.5, 7.0), description="shorter side of the floor")
    height_metres: tuple[float, float] = Field((2.4, 4.0), description="floor to ceiling")
    rt60_seconds: tuple[float, float] = Field(
        (0.15, 0.6), description="reverberation time by Sabine; raised where the room cannot be as dry"
    )
    distance_metres: tuple[float, float] = Field((0.5, 4.0), description="microphone to source")
    image_order: int = Field(40, ge=0, le=100, description="reflections a path at most; cost grows cubed")

    @model_validator(mode="after")
    def _possible(self) -> RoomConfig:
        for name in ("length_metres", "width_metres", "height_metres"):
            if getattr(self, name)[0] < MIN_SIDE_METRES:
                raise ValueError(
                    f"{name} {getattr(self, name)} leaves no place for a source and a microphone"
                )
        for name in ("rt60_seconds", "distance_metres"):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} must be above 0")
        return self


class DeviceConfig(Section):
    """The microphone of a device: convolution with a recorded impulse response (DIR)."""

    probability: float = Field(0.0, ge=0, le=1, description="share of augmented views through a device")
    folder: Path | None = Field(None, description="folder of impulse responses (wav, flac), e.g. MicIRP's")


class BandConfig(Section):
    """The limited band of a hearing device or a telephone: Butterworth slopes of 24 dB an octave."""

    probability: float = Field(0.0, ge=0, le=1, description="share of augmented views with a limited band")
    low_pass_hz: tuple[float, float] = Field((4_000.0, 12_000.0), description="upper edge, uniform in log")
    high_pass_hz: tuple[float, float] = Field((50.0, 250.0), description="lower edge, uniform in log")

    @model_validator(mode="after")
    def _possible(self) -> BandConfig:
        if min(self.low_pass_hz[0], self.high_pass_hz[0]) <= 0:
            raise ValueError("low_pass_hz and high_pass_hz must be above 0")
        return self


class ViewsConfig(Section):
    """Extra views embedded beside the clean windows. All are drawn from ``seed`` and heard by the teacher."""

    mixes: int = Field(
        0, ge=0, description="windows that mix one to three clean ones at drawn SNR, gain and EQ"
    )
    textures: int = Field(0, ge=0, description="procedural textures (wind, rain, engines, knocks, calls)")
    seed: int = Field(0)
    snr_db: tuple[float, float] = Field((-12.0, 6.0), description="level of the added clips")
    level_dbfs: tuple[float, float] = Field((-42.0, -10.0), description="final RMS level")
    eq_probability: float = Field(0.6, ge=0, le=1)
    eq_gain_db: float = Field(12.0, ge=0, description="EQ nodes are drawn within plus or minus this")
    speech_weight: float = Field(0.35, ge=0, description="drawing weight of speech against all other sounds")
    augmented: float = Field(
        0.0, ge=0, description="augmented views a clean window: 2 = two of each, 0.5 = one of every other"
    )
    foreground: ClipFilter = Field(ClipFilter(), description="which clean windows have augmented views")
    crop_probability: float = Field(
        0.0, ge=0, le=1, description="share of augmented views cut at another offset of the clip"
    )
    gain_db: tuple[float, float] = Field((0.0, 0.0), description="gain of an augmented view")
    background: BackgroundConfig = BackgroundConfig()
    room: RoomConfig = RoomConfig()
    device: DeviceConfig = DeviceConfig()
    band: BandConfig = BandConfig()

    @model_validator(mode="after")
    def _possible(self) -> ViewsConfig:
        if self.device.probability > 0 and self.device.folder is None:
            raise ValueError("device.probability needs device.folder, the impulse responses")
        for owner, names in (
            (self, ("gain_db",)),
            (self.background, ("snr_db",)),
            (
                self.room,
                ("length_metres", "width_metres", "height_metres", "rt60_seconds", "distance_metres"),
            ),
            (self.band, ("low_pass_hz", "high_pass_hz")),
        ):
            for name in names:
                low, high = getattr(owner, name)
                if low > high:
                    raise ValueError(f"{name} runs from {low:g} down to {high:g}")
        return self

    def content(self) -> dict[str, Any]:
        """Return the keys that fix what is embedded, JSON types.

        Of a folder only its name counts, for moving audio changes nothing; what is in it is part of each row's
        key. Without augmented views their keys are left out: a store made before there were any keeps its name.
        """
        if not self.augmented:
            return self.model_dump(mode="json", include=set(FIRST_KEYS))
        content = self.model_dump(mode="json")
        for part, key in (("background", "manifest"), ("device", "folder")):
            path = getattr(getattr(self, part), key)
            content[part][key] = path.name if path is not None else None
        return content
