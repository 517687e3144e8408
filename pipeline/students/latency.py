"""How late a student is by construction: the algorithmic latency, which no faster processor mends."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import LogMelConfig
from pipeline.students.base import Student
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.receptive_field import ReceptiveField, receptive_field


@dataclass(frozen=True)
class Latency:
    """A student's receptive field and algorithmic latency behind a frontend.

    Attributes:
        field: in frames.
        window_ms: of the frontend's analysis window; a frame is there when its last sample is.
        hop_ms: from frame to frame.
    """

    field: ReceptiveField
    window_ms: float
    hop_ms: float

    @property
    def receptive_field_ms(self) -> float:
        """Sound that one step of the last maps hears through convolutions and pools."""
        return (self.field.frames - 1) * self.hop_ms + self.window_ms

    @property
    def step_ms(self) -> float:
        """From one new embedding to the next, on a stream."""
        return self.field.step_frames * self.hop_ms

    @property
    def lookahead_ms(self) -> float | None:
        """Frames of the future that are waited for; None: the clip's end is."""
        frames = self.field.lookahead_frames
        return None if frames is None else frames * self.hop_ms

    @property
    def algorithmic_ms(self) -> float | None:
        """Analysis window and lookahead: from a sound's first sample to the first embedding that may hear it whole.

        That is for a sound at the end of a block of ``step_ms``; None: the clip's end is waited for.
        """
        return None if self.lookahead_ms is None else self.window_ms + self.lookahead_ms

    @property
    def longest_ms(self) -> float | None:
        """The same for a sound at the beginning of a block, which waits for the block's other frames."""
        return None if self.algorithmic_ms is None else self.algorithmic_ms + self.step_ms - self.hop_ms

    def __str__(self) -> str:
        """Say it in one line."""
        field = f"receptive field {self.field.frames} frames = {self.receptive_field_ms:.0f} ms"
        if self.algorithmic_ms is None or self.longest_ms is None:
            return f"{field}, then statistics of the whole clip: no stream"
        return (
            f"{field} and statistics so far; an embedding every {self.field.step_frames} frames = "
            f"{self.step_ms:.0f} ms; lookahead {self.field.lookahead_frames} frames; algorithmic latency "
            f"{self.algorithmic_ms:.0f} to {self.longest_ms:.0f} ms"
        )


def latency(student: Student | NormalisedStudent, frontend: LogMelConfig) -> Latency:
    """Return the receptive field and algorithmic latency of ``student`` behind ``frontend``, from the network itself.

    Args:
        student: causal or not; its weights do not matter.
        frontend: gives mels, hop and window. A frame's stamp is its first sample here, so that ``center`` makes
            no difference: it names the same samples by their middle.
    """
    backbone = student.backbone if isinstance(student, NormalisedStudent) else student
    field = receptive_field(backbone, frontend.mels)
    ms = 1_000.0 / frontend.sample_rate_hz
    return Latency(field, frontend.window_length * ms, frontend.hop_length * ms)
