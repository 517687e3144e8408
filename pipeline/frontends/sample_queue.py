"""A stream's samples, padded as a whole signal would be, in blocks of whole frames: for torch and for numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pipeline.errors import AudioError, ConfigError
from pipeline.frontends.constants import LogMelConstants

Samples = TypeVar("Samples")


class SampleQueue(Generic[Samples]):
    """Takes samples in any portions; gives back blocks whose frames are those of the whole signal.

    A block begins where the next frame does and ends where the last whole one does, so that its frame ``k``
    starts at ``k * hop_length``.

    Args:
        config: FFT length, hop and padding.
        join: of several (batch, samples), one after another.
        turned: (batch, samples) from last to first.
        silence: of a number of samples, (batch, that many) zeros.

    Raises:
        ConfigError: the frontend standardises whole waveforms, which no stream can.
    """

    def __init__(
        self,
        config: LogMelConstants,
        *,
        join: Callable[[Sequence[Samples]], Samples],
        turned: Callable[[Samples], Samples],
        silence: Callable[[int], Samples],
    ) -> None:
        if config.standardise:
            raise ConfigError(
                "this frontend cannot follow a stream",
                expected="embed.frontend.standardise = false",
                got="each whole waveform to mean 0 and variance 1",
            )
        self.config = config
        self._join, self._turned, self._silence = join, turned, silence
        self._half = config.n_fft // 2 if config.center else 0
        self._reflects = config.center and config.pad_mode == "reflect"
        self.reset()

    def reset(self) -> None:
        """Start anew, as if nothing had been heard."""
        nothing = self._silence(0)
        self._waiting, self._skip = nothing, 0
        self._started, self._heard = not self.config.center, 0
        # Reflection needs what came first before the first frame, and what came last after the last.
        self._first, self._last = nothing, nothing

    def push(self, samples: Samples) -> Samples | None:
        """Hear the next samples (batch, any number); return a block of frames, or None while none is whole."""
        number = _length(samples)
        self._heard += number
        if self._reflects:
            self._last = _tail(self._join([self._last, samples]), self._half + 1)
        if not self._started:
            if not self._reflects:
                samples = self._join([self._silence(self._half), samples])
            else:
                self._first = samples = self._join([self._first, samples])
                if _length(samples) <= self._half:
                    return None
                samples = self._join([self._turned(samples[:, 1 : self._half + 1]), samples])  # type: ignore[index]
                self._first = self._silence(0)
            self._started = True
        return self._taken(samples)

    def finish(self) -> Samples | None:
        """End the signal: return the frames that padding at its end completes, or None; then start anew.

        Raises:
            AudioError: the whole signal was too short for one frame, or for reflection padding.
        """
        least = self.config.n_fft
        if self.config.center:
            least = self._half + 1 if self._reflects else 1
        if self._heard < least:
            heard = self._heard
            self.reset()
            raise AudioError("too_short", "too few samples for one frame", expected=f">= {least}", got=heard)
        block = None
        if self.config.center:
            end = self._turned(self._last[:, :-1]) if self._reflects else self._silence(self._half)  # type: ignore[index]
            block = self._taken(end)
        self.reset()
        return block

    def _taken(self, samples: Samples) -> Samples | None:
        hop, n_fft = self.config.hop_length, self.config.n_fft
        waiting = self._join([self._waiting, samples])
        skipped = min(self._skip, _length(waiting))
        self._skip -= skipped
        waiting = waiting[:, skipped:]  # type: ignore[index]
        length = _length(waiting)
        frames = (length - n_fft) // hop + 1 if length >= n_fft and not self._skip else 0
        if frames == 0:
            self._waiting = waiting
            return None
        # A hop longer than the FFT leaves samples out between frames, some of them not heard yet.
        self._skip = max(0, frames * hop - length)
        self._waiting = waiting[:, frames * hop :]
        block: Samples = waiting[:, : (frames - 1) * hop + n_fft]
        return block


def _length(samples: object) -> int:
    return int(samples.shape[1])  # type: ignore[attr-defined]


def _tail(samples: Samples, number: int) -> Samples:
    return samples[:, max(0, _length(samples) - number) :]  # type: ignore[index,no-any-return]
