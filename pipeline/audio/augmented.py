"""Augmented views: one clean window as another place, device or level would have it; the teacher hears it so.

In the order of the physics: another offset of the clip, a room, a background in the same room at a drawn
signal-to-noise ratio, the device's impulse response, a limited band, gain. What is drawn is drawn by the plan
and stored in ``view_parameters``; rendering draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from pipeline.audio import equaliser, impulse, levels, rooms
from pipeline.audio.equaliser import Equaliser, log_uniform
from pipeline.audio.impulse import Response
from pipeline.audio.rooms import Room
from pipeline.config import ViewsConfig
from pipeline.errors import AudioError, ConfigError
from pipeline.section import Section

VERSION = "augmented/1"
FLAT = Equaliser((0.0,) * equaliser.NODES)

# From the digest of a device's impulse response and a rate in Hz to its samples.
Devices = Callable[[str, int], Float32[np.ndarray, " taps"]]


class AugmentedParameters(Section):
    """Everything drawn for one augmented view, the windows apart; what was not drawn is None.

    Attributes:
        snr_db: window above background, over active frames, both as they arrive at the microphone.
        room: where both stand.
        room_code: version of the library that simulates it.
        device: name of the impulse response's file; ``device_digest`` is of its sound.
        low_pass_hz: upper edge of the band, ``high_pass_hz`` the lower one.
        gain_db: on the finished signal, less where its peak would pass the limit of 0.98.
    """

    snr_db: float | None = None
    room: Room | None = None
    room_code: str | None = None
    device: str | None = None
    device_digest: str | None = None
    low_pass_hz: float | None = None
    high_pass_hz: float | None = None
    gain_db: float = 0.0


def draw(
    generator: np.random.Generator, split: str, views: ViewsConfig, devices: Sequence[Response]
) -> AugmentedParameters:
    """Return the parameters of one view; the caller gives a background where ``snr_db`` is not None.

    Every number is drawn whether it is used or not, so that one key of the recipe moves no other draw.

    Args:
        generator: of the draw.
        split: of the clip; rooms of training and validation are different ones.
        views: probabilities and ranges.
        devices: impulse responses to choose from; may be empty where none is asked for.
    """
    chances = generator.random(4)
    snr_db = float(generator.uniform(*views.background.snr_db))
    number = int(generator.integers(views.room.count))
    choice = float(generator.random())
    low_pass, high_pass = (
        log_uniform(generator, *edges) for edges in (views.band.low_pass_hz, views.band.high_pass_hz)
    )
    gain_db = float(generator.uniform(*views.gain_db))
    wanted = [part.probability for part in (views.background, views.room, views.device, views.band)]
    mixed, roomy, device, band = (bool(chance < share) for chance, share in zip(chances, wanted, strict=True))
    response = devices[int(choice * len(devices))] if device else None
    return AugmentedParameters(
        snr_db=round(snr_db, 3) if mixed else None,
        room=rooms.draw(views.seed, split, number, views.room) if roomy else None,
        room_code=rooms.version() if roomy else None,
        device=response.name if response else None,
        device_digest=response.digest if response else None,
        low_pass_hz=round(low_pass, 1) if band else None,
        high_pass_hz=round(high_pass, 1) if band else None,
        gain_db=round(gain_db, 3),
    )


def render(
    windows: Sequence[Float32[np.ndarray, " samples"]],
    parameters: AugmentedParameters,
    rate_hz: int,
    devices: Devices | None = None,
) -> Float32[np.ndarray, " samples"]:
    """Return the view of ``windows``: the clip's and, where ``snr_db`` is set, its background's (equal lengths).

    A room leaves the window's level over active frames as it was; a device does not.

    Raises:
        AudioError: a window is silent (reason ``silent``).
        ConfigError: a device is asked for, and ``devices`` is None.
    """
    heard = windows[0]
    if parameters.room is not None:
        placed = rooms.responses(parameters.room, rate_hz)
        wet = impulse.convolve(heard, placed[0])
        heard = wet * np.float32(_level(heard) / _level(wet))
    if parameters.snr_db is not None:
        background = windows[1]
        if parameters.room is not None:
            background = impulse.convolve(background, placed[1])
        wanted = _level(heard) * levels.from_db(-parameters.snr_db)
        heard = heard + background * np.float32(wanted / _level(background))
    if parameters.device_digest is not None:
        if devices is None:
            raise ConfigError(
                f"the row was heard through {parameters.device}, and no impulse responses are given",
                run="set embed.views.device.folder to the store's",
            )
        heard = impulse.convolve(heard, devices(parameters.device_digest, rate_hz))
    if parameters.low_pass_hz is not None:
        band = Equaliser(FLAT.node_gains_db, parameters.low_pass_hz, parameters.high_pass_hz)
        heard = equaliser.apply(band, heard, rate_hz)
    peak = max(float(heard.max()), -float(heard.min()))
    if peak == 0.0:
        raise AudioError("silent", "an augmented view is silent")
    return heard * np.float32(min(levels.from_db(parameters.gain_db), levels.PEAK_LIMIT / peak))


def _level(waveform: Float32[np.ndarray, " samples"]) -> float:
    level = levels.active_rms(waveform)
    if level == 0.0:
        raise AudioError("silent", "a window of an augmented view is silent")
    return level
