"""Impulse responses: convolution as device augmentation does it, and folders of recorded responses.

Device impulse responses (DIR): Morocutti, Schmid, Koutini and Widmer, "Device-Robust Acoustic Scene
Classification via Impulse Response Augmentation", EUSIPCO 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
from jaxtyping import Float32

from pipeline.audio import decode, equaliser, resampling
from pipeline.audio.sources import has_sound_suffix, walk
from pipeline.errors import AudioError, ConfigError

MAX_SECONDS = 10.0
DIGEST_DIGITS = 16


def convolve(
    waveform: Float32[np.ndarray, " samples"], response: Float32[np.ndarray, " taps"]
) -> Float32[np.ndarray, " samples"]:
    """Return the causal linear convolution of ``waveform`` with ``response``, cut to the waveform's length.

    No centring, no normalisation: a response delays and scales the sound as the device did.
    """
    samples = len(waveform)
    # float64: the transforms' own error must not be heard below a quiet passage.
    length = equaliser.fast_length(samples + min(len(response), samples) - 1)
    spectrum = scipy.fft.rfft(waveform.astype(np.float64), length)
    spectrum *= scipy.fft.rfft(response[:samples].astype(np.float64), length)
    convolved: np.ndarray = scipy.fft.irfft(spectrum, length, overwrite_x=True)[:samples]
    return convolved.astype(np.float32)


@dataclass(frozen=True)
class Response:
    """One recorded impulse response.

    Attributes:
        name: its path in the folder.
        digest: of the decoded sound and its rate, 16 hex digits.
        path: the file.
    """

    name: str
    digest: str
    path: Path


class ResponseFolder:
    """The impulse responses in a folder, each sound once, by name; read when first used and kept.

    Args:
        folder: searched with all below it for wav, flac, ogg, aiff, mp3.
        key: of the recipe that names it, for messages.

    Raises:
        ConfigError: no folder, no response in it, or one that cannot be used.
    """

    def __init__(self, folder: Path, key: str = "embed.views.device.folder") -> None:
        self.folder, self.key = Path(folder), key
        if not self.folder.is_dir():
            raise ConfigError(
                f"{key}: {self.folder} is no folder",
                expected="a folder of impulse responses (wav, flac)",
                run=f"set {key}, or its probability to 0",
            )
        found = {response.digest: response for response in reversed(list(self._responses()))}
        if not found:
            raise ConfigError(
                f"{key}: {self.folder} holds no impulse response",
                expected="wav or flac files of one response each",
                run=f"set {key}, or its probability to 0",
            )
        self.by_digest = found
        self.responses = sorted(found.values(), key=lambda response: response.digest)
        self._waveforms: dict[tuple[str, int], np.ndarray] = {}

    def waveform(self, digest: str, rate_hz: int) -> Float32[np.ndarray, " taps"]:
        """Return the response of that digest at ``rate_hz``.

        Scaled by the ratio of the rates, so that a response has one gain at each frequency whatever rate its
        file has. (The published code resamples without it.)

        Raises:
            ConfigError: the folder holds no such response any more.
        """
        if digest not in self.by_digest:
            raise ConfigError(
                f"{self.folder} no longer holds the impulse response {digest} that the plan names",
                expected="the folder that the store was begun with",
                run="put the response back, or move the store away and run ossicle embed again",
            )
        key = (digest, rate_hz)
        if key not in self._waveforms:
            native, rate = decode.read(self.by_digest[digest].path)
            self._waveforms[key] = resampling.resample(native, rate, rate_hz) * np.float32(rate / rate_hz)
        return self._waveforms[key]

    def _responses(self) -> Iterator[Response]:
        for name in walk(self.folder):
            if not has_sound_suffix(name):
                continue
            path = self.folder / name
            try:
                claimed = decode.probe(path).duration_seconds
                if claimed > MAX_SECONDS:
                    raise AudioError(
                        "too_long", f"{name} lasts {claimed:.1f} s, a response {MAX_SECONDS:g} s at most"
                    )
                seen = decode.inspect(path)
            except AudioError as error:
                raise ConfigError(
                    f"an impulse response cannot be used: {error}",
                    got=decode.displayed(path),
                    run=f"take it out of {self.key}",
                ) from error
            if seen.peak == 0.0:
                raise ConfigError(
                    "an impulse response is silent",
                    got=decode.displayed(path),
                    run=f"take it out of {self.key}",
                )
            yield Response(name, seen.digest[:DIGEST_DIGITS], path)
