"""The keys of a students' frontend: ``[embed.frontend]`` and ``[[embed.more_frontends]]``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.section import Section

# Keys that came after the first stores: written down only where they are used, so that older digests hold.
_LATER = ("bands", "log_floor", "standardise")


class LogMelConfig(Section):
    """The students' log-mel frontend: every constant. Its digest names the spectrogram array."""

    sample_rate_hz: int = Field(16_000, gt=0)
    n_fft: int = Field(512, gt=1, multiple_of=2, description="FFT length in samples, even")
    window_length: int = Field(512, gt=1, description="analysis window in samples (at most n_fft)")
    hop_length: int = Field(320, gt=0, description="hop in samples")
    window: Literal["hann_periodic", "hann_symmetric"] = "hann_periodic"
    center: bool = Field(True, description="pad n_fft/2 on both sides so that frame k is centred on k*hop")
    pad_mode: Literal["constant", "reflect"] = "constant"
    power: float = Field(2.0, gt=0, description="exponent of the magnitude")
    mels: int = Field(64, gt=0, description="mel bands; of linear bands n_fft/2 + 1, which is their default")
    min_hz: float = Field(50.0, ge=0)
    max_hz: float = Field(8_000.0, gt=0)
    mel_scale: Literal["htk", "slaney"] = "htk"
    mel_norm: Literal["slaney", "none"] = Field("slaney", description="slaney = triangles of equal area")
    log: Literal["ln", "log10", "db"] = Field("ln", description="db = 10 log10")
    log_offset: float = Field(1e-5, ge=0, description="added before the logarithm")
    bands: Literal["mel", "linear"] = Field(
        "mel",
        description="linear = the FFT's bins as they are, for students with filters of their own (harmonic_cnn); "
        "min_hz, max_hz, mel_scale and mel_norm then say nothing",
    )
    log_floor: float = Field(0.0, ge=0, description="what is below is raised to it, before the logarithm")
    standardise: bool = Field(
        False,
        description="each waveform to mean 0 and variance 1 first (wav2vec 2.0's and Wav2Small's input)",
    )

    @model_validator(mode="before")
    @classmethod
    def _bins(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("bands") == "linear" and "mels" not in given:
            return {**given, "mels": int(given.get("n_fft", cls.model_fields["n_fft"].default)) // 2 + 1}
        return given

    @model_validator(mode="after")
    def _possible(self) -> LogMelConfig:
        if self.window_length > self.n_fft:
            raise ValueError(f"window_length {self.window_length} is longer than n_fft {self.n_fft}")
        if self.max_hz > self.sample_rate_hz / 2:
            raise ValueError(f"max_hz {self.max_hz:g} is above half of sample_rate_hz {self.sample_rate_hz}")
        if self.min_hz >= self.max_hz:
            raise ValueError(f"min_hz {self.min_hz:g} is not below max_hz {self.max_hz:g}")
        if self.log_offset == 0 and self.log_floor == 0:
            raise ValueError("log_offset 0 and log_floor 0 make silence -inf; the store refuses that")
        if self.bands == "linear" and self.mels != self.n_fft // 2 + 1:
            raise ValueError(
                f"n_fft {self.n_fft} has {self.n_fft // 2 + 1} bins: that is mels of linear bands, not {self.mels}"
            )
        return self

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        for name in _LATER:
            if content.get(name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content

    def frames(self, samples: int) -> int:
        """Return the number of frames of ``samples`` samples at ``sample_rate_hz``."""
        if self.center:
            return 1 + samples // self.hop_length
        return max(0, 1 + (samples - self.n_fft) // self.hop_length)
