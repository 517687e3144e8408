"""A log-mel's constants for code that runs without pydantic: a board has numpy, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class LogMelConstants(Protocol):
    """What :class:`pipeline.config.LogMelConfig` holds; see there for the meaning of each."""

    @property
    def sample_rate_hz(self) -> int: ...
    @property
    def n_fft(self) -> int: ...
    @property
    def window_length(self) -> int: ...
    @property
    def hop_length(self) -> int: ...
    @property
    def window(self) -> str: ...
    @property
    def center(self) -> bool: ...
    @property
    def pad_mode(self) -> str: ...
    @property
    def power(self) -> float: ...
    @property
    def mels(self) -> int: ...
    @property
    def min_hz(self) -> float: ...
    @property
    def max_hz(self) -> float: ...
    @property
    def mel_scale(self) -> str: ...
    @property
    def mel_norm(self) -> str: ...
    @property
    def log(self) -> str: ...
    @property
    def log_offset(self) -> float: ...
    @property
    def bands(self) -> str: ...
    @property
    def log_floor(self) -> float: ...
    @property
    def standardise(self) -> bool: ...


@dataclass(frozen=True)
class PlainLogMelConstants:
    """The constants as an exported file carries them: ``json.loads`` of its property ``ossicle.frontend``."""

    sample_rate_hz: int
    n_fft: int
    window_length: int
    hop_length: int
    window: str
    center: bool
    pad_mode: str
    power: float
    mels: int
    min_hz: float
    max_hz: float
    mel_scale: str
    mel_norm: str
    log: str
    log_offset: float
    # Written only where they are used.
    bands: str = "mel"
    log_floor: float = 0.0
    standardise: bool = False

    @classmethod
    def read(cls, properties: Mapping[str, Any]) -> PlainLogMelConstants:
        """Return the constants in ``properties``.

        Raises:
            TypeError: one is missing, or unknown: the file is of another version.
        """
        return cls(**properties)
