"""What a scene's labels say, measured from its responses and stems: RT60, DRR, SNR, activity, level deviation."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

DIRECT_SECONDS = 0.0025
DIRECT_SEARCH_SECONDS = 0.001
FIT_FROM_DB, FIT_TO_DB = -5.0, -35.0
FRAME_SECONDS = 0.02
ACTIVE_RANGE_DB = 40.0
ACTIVE_FRAMES = 5  # of the 50 in a second: 100 ms of speech
LEVEL_SECONDS = 0.125
LEVEL_RANGE_DB = 80.0

STATIONARY, TRANSIENT = "Stationary", "Transient"


def rt60_seconds(response: Float[np.ndarray, " taps"], rate_hz: int, direct_sample: int = 0) -> float:
    """Return the reverberation time of an impulse response, T30: twice the time from -5 to -35 dB.

    Least squares on the decay curve integrated backwards (Schroeder, JASA 37, 1965; ISO 3382-1:2009). NaN where the
    curve does not fall that far.
    """
    energy = np.square(response[direct_sample:].astype(np.float64))
    remaining = np.cumsum(energy[::-1])[::-1]
    if not len(remaining) or remaining[0] <= 0:
        return float("nan")
    decay_db = 10 * np.log10(np.maximum(remaining / remaining[0], 1e-12))
    if decay_db[-1] > FIT_TO_DB:
        return float("nan")
    first, last = int(np.argmax(decay_db <= FIT_FROM_DB)), int(np.argmax(decay_db <= FIT_TO_DB))
    if last - first < 2:
        return float("nan")
    seconds = np.arange(first, last + 1) / rate_hz
    seconds = seconds - seconds.mean()
    slope = float((seconds * decay_db[first : last + 1]).sum() / np.square(seconds).sum())
    return -60.0 / slope


def drr_db(response: Float[np.ndarray, " taps"], rate_hz: int, direct_sample: int) -> float:
    """Return the direct-to-reverberant ratio: energy within 2.5 ms of the direct sound over all the rest.

    Zahorik, JASA 112(5), 2002. Infinite where nothing follows.

    Args:
        response: of one source.
        rate_hz: sample rate.
        direct_sample: where geometry has the direct sound; its peak is looked for within 1 ms of it.
    """
    near = round(DIRECT_SEARCH_SECONDS * rate_hz)
    start = max(0, direct_sample - near)
    peak = start + int(np.argmax(np.abs(response[start : direct_sample + near + 1])))
    width = round(DIRECT_SECONDS * rate_hz)
    energy = np.square(response.astype(np.float64))
    direct = float(energy[max(0, peak - width) : peak + width + 1].sum())
    rest = float(energy.sum()) - direct
    return 10 * float(np.log10(direct / rest)) if rest > direct * 1e-12 else float("inf")


def snr_db(
    target: Float[np.ndarray, " samples"], background: Float[np.ndarray, " samples"], rate_hz: int
) -> Float[np.ndarray, " seconds"]:
    """Return the ratio of energies of each whole second in dB; -inf where the target is silent."""
    with np.errstate(divide="ignore"):
        ratio: np.ndarray = 10 * np.log10(_energies(target, rate_hz) / _energies(background, rate_hz))
    return ratio


def active_frames(dry: Float[np.ndarray, " samples"], rate_hz: int) -> Bool[np.ndarray, " frames"]:
    """Return which 20 ms frames of dry speech are within 40 dB of its loudest frame."""
    energy = _energies(dry, round(FRAME_SECONDS * rate_hz))
    loudest = energy.max(initial=0.0)
    active: np.ndarray = (energy > loudest * 10 ** (-ACTIVE_RANGE_DB / 10)) & (energy > 0)
    return active


def active_speakers(frames: Bool[np.ndarray, "speakers frames"]) -> Float[np.ndarray, " seconds"]:
    """Return how many speakers are active in each second; NaN where that is open.

    A speaker with 5 active frames of 20 ms or more is active, with none is not; 1 to 4 leave the second open.
    """
    a_second = round(1 / FRAME_SECONDS)
    seconds = frames.shape[1] // a_second
    counts = frames[:, : seconds * a_second].reshape(len(frames), seconds, a_second).sum(axis=2)
    found: np.ndarray = (counts >= ACTIVE_FRAMES).sum(axis=0).astype(np.float64)
    found[((counts > 0) & (counts < ACTIVE_FRAMES)).any(axis=0)] = np.nan
    return found


def level_deviation_db(signal: Float[np.ndarray, " samples"], rate_hz: int) -> float:
    """Return the standard deviation of the levels of 125 ms frames ("fast" of sound level meters), dB.

    Levels count to 80 dB below the loudest frame; silence has none (0).
    """
    energy = _energies(signal, round(LEVEL_SECONDS * rate_hz))
    loudest = energy.max(initial=0.0)
    if loudest <= 0:
        return 0.0
    return float(np.std(10 * np.log10(np.maximum(energy / loudest, 10 ** (-LEVEL_RANGE_DB / 10)))))


def noise_class(deviation_db: float, stationary_below_db: float, transient_above_db: float) -> str:
    """Return ``Stationary``, ``Transient``, or "" for what lies between."""
    if deviation_db < stationary_below_db:
        return STATIONARY
    return TRANSIENT if deviation_db > transient_above_db else ""


def _energies(signal: np.ndarray, frame: int) -> np.ndarray:
    whole = len(signal) // frame
    framed = signal[: whole * frame].reshape(whole, frame).astype(np.float64)
    energies: np.ndarray = np.square(framed).sum(axis=1)
    return energies
