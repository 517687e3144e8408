"""The students' log-mel in numpy alone: for boards, and for whoever checks the other forms.

No torch, no pydantic, no jaxtyping: a board that has numpy and this distribution without its dependencies
(``pip install --no-deps ossicle``) can import it. An import contract keeps it so.
"""

from __future__ import annotations

import numpy as np

from pipeline.errors import AudioError
from pipeline.frontends.constants import LogMelConstants
from pipeline.frontends.mel_bank import mel_bank
from pipeline.frontends.sample_queue import SampleQueue
from pipeline.frontends.windowed_dft import padded_window


class NumpyLogMel:
    """Waveform to log-mel; equal to :class:`pipeline.frontends.log_mel.LogMel` to 1e-4.

    Args:
        config: a ``LogMelConfig``, or ``PlainLogMelConstants.read(json.loads(...))`` of an exported file's
            property ``ossicle.frontend``.

    Example:
        >>> from pipeline.config import LogMelConfig
        >>> NumpyLogMel(LogMelConfig())(np.zeros((2, 36_782), np.float32)).shape
        (2, 64, 115)
    """

    def __init__(self, config: LogMelConstants) -> None:
        self.config = config
        self.window = padded_window(config).astype(np.float32)
        self.bank = mel_bank(config).astype(np.float32) if config.bands == "mel" else None

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (batch, mels, frames) float32 of (batch, samples) at ``config.sample_rate_hz``.

        Raises:
            AudioError: too short for one frame, or for reflection padding.
        """
        heard = np.asarray(waveform, np.float32)
        if heard.ndim != 2:
            raise AudioError("shape", "no batch of waveforms", expected="(batch, samples)", got=heard.shape)
        return self.levels(self._padded(_standardised(heard) if self.config.standardise else heard))

    def levels(self, padded: np.ndarray) -> np.ndarray:
        """Return (batch, mels, frames) of samples that are padded already: frame ``k`` starts at ``k * hop_length``."""
        config = self.config
        frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft, axis=1)[
            :, :: config.hop_length
        ]
        spectrum = np.fft.rfft(frames * self.window, axis=-1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        if config.power != 2.0:
            power = power ** np.float32(config.power / 2.0)
        bands = np.swapaxes(power if self.bank is None else power @ self.bank.T, 1, 2)
        if config.log_floor:
            bands = np.maximum(bands, np.float32(config.log_floor))
        offset = np.float32(config.log_offset)
        level = np.log(bands + offset) if config.log == "ln" else np.log10(bands + offset)
        found: np.ndarray = level * np.float32(10.0) if config.log == "db" else level
        return found

    def _padded(self, waveform: np.ndarray) -> np.ndarray:
        config = self.config
        half, least = config.n_fft // 2, config.n_fft
        if config.center:
            least = half + 1 if config.pad_mode == "reflect" else 1
        if waveform.shape[1] < least:
            raise AudioError(
                "too_short", "too few samples for one frame", expected=f">= {least}", got=waveform.shape[1]
            )
        if not config.center:
            return waveform
        around = ((0, 0), (half, half))
        if config.pad_mode == "reflect":
            return np.pad(waveform, around, mode="reflect")
        return np.pad(waveform, around)


class NumpyLogMelStream:
    """The log-mel of a stream, frame by frame equal to that of the whole signal.

    Args:
        frontend: gives the frames.
        batch: streams side by side.

    Example:
        >>> from pipeline.config import LogMelConfig
        >>> stream = NumpyLogMelStream(NumpyLogMel(LogMelConfig()))
        >>> stream.push(np.zeros((1, 1_000), np.float32)).shape, stream.finish().shape
        ((1, 64, 3), (1, 64, 1))
    """

    def __init__(self, frontend: NumpyLogMel, batch: int = 1) -> None:
        self.frontend, self.batch = frontend, batch
        self.queue = SampleQueue[np.ndarray](
            frontend.config,
            join=lambda parts: np.concatenate(list(parts), axis=1),
            turned=lambda samples: samples[:, ::-1],
            silence=lambda number: np.zeros((batch, number), np.float32),
        )

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Hear (batch, any number) and return (batch, mels, frames that they complete), perhaps none.

        Raises:
            AudioError: another number of streams.
        """
        heard = np.asarray(samples, np.float32)
        if heard.ndim != 2 or heard.shape[0] != self.batch:
            raise AudioError(
                "shape", "these samples are of another stream", expected=f"({self.batch}, samples)", got=heard.shape
            )  # fmt: skip
        return self._levels(self.queue.push(heard))

    def finish(self) -> np.ndarray:
        """End the signal and return its last (batch, mels, frames), perhaps none.

        Raises:
            AudioError: the whole signal was too short for one frame, or for reflection padding.
        """
        return self._levels(self.queue.finish())

    def _levels(self, block: np.ndarray | None) -> np.ndarray:
        if block is None:
            return np.zeros((self.batch, self.frontend.config.mels, 0), np.float32)
        return self.frontend.levels(block)


def _standardised(waveform: np.ndarray) -> np.ndarray:
    centred = waveform - waveform.mean(axis=1, keepdims=True)
    found: np.ndarray = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(1e-7))
    return found
