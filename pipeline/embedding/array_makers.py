"""What makes the arrays of a store: each frontend one, each teacher one an output; waveforms in, rows out."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.audio.windows import frame_count
from pipeline.config import EmbedConfig, LogMelConfig, TeacherConfig
from pipeline.errors import ConfigError
from pipeline.frontends.log_mel import LogMel
from pipeline.store.schema import ArraySpec, output_spec, spectrogram_spec
from pipeline.teachers.base import Teacher, check_outputs
from pipeline.teachers.registry import build_teacher


class ArrayMaker(Protocol):
    """Something that hears windows at one rate and gives rows of one or several arrays.

    Attributes:
        sample_rate_hz: of the waveforms it wants.
        specs: the arrays it can make.
    """

    sample_rate_hz: int
    specs: tuple[ArraySpec, ...]

    def make(
        self, waveforms: Float[Tensor, "batch samples"], wanted: Collection[str]
    ) -> dict[str, np.ndarray]:
        """Return float32 rows of the arrays whose paths (``ArraySpec.path``) are ``wanted``."""
        ...


class SpectrogramMaker:
    """The log-mel of one frontend."""

    def __init__(self, config: LogMelConfig, embed: EmbedConfig) -> None:
        self.sample_rate_hz = config.sample_rate_hz
        frames = config.frames(frame_count(embed.window_seconds, config.sample_rate_hz))
        self.specs: tuple[ArraySpec, ...] = (spectrogram_spec(config, frames, embed.spectrogram_dtype),)
        self._log_mel = LogMel(config).eval()

    @torch.inference_mode()
    def make(
        self, waveforms: Float[Tensor, "batch samples"], wanted: Collection[str]
    ) -> dict[str, np.ndarray]:
        """Return the log-mel, if it is wanted."""
        path = self.specs[0].path
        return {path: self._log_mel(waveforms).to(torch.float32).numpy()} if path in wanted else {}


class TeacherMaker:
    """The outputs of one teacher that its configuration names.

    Args:
        teacher: built.
        config: which outputs, at which frame rate, how many logits.
        embed: the window's length and the stored types.

    Raises:
        ConfigError: an output the teacher does not have, or frames at a higher rate than its own.
    """

    def __init__(self, teacher: Teacher, config: TeacherConfig, embed: EmbedConfig) -> None:
        check_outputs(teacher.name, teacher.outputs, config.outputs)
        self.teacher, self.config = teacher, config
        self.sample_rate_hz = teacher.sample_rate_hz
        self._seconds = embed.window_seconds
        self._output: dict[str, str] = {}
        specs = []
        for output, shape in self._shapes().items():
            spec = self._spec(output, shape, embed)
            self._output[spec.path] = output
            specs.append(spec)
        self.specs: tuple[ArraySpec, ...] = tuple(specs)

    def make(
        self, waveforms: Float[Tensor, "batch samples"], wanted: Collection[str]
    ) -> dict[str, np.ndarray]:
        """Return the wanted outputs, frames averaged to their rate; the teacher hears the batch once."""
        outputs = {path: output for path, output in self._output.items() if path in wanted}
        if not outputs:
            return {}
        made = self.teacher.embed(waveforms, tuple(outputs.values()))
        return {path: self._pooled(output, made[output]).numpy() for path, output in outputs.items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each output's row shape. The embedding's is known; others are found by hearing silence."""
        shapes: dict[str, tuple[int, ...]] = {}
        others = tuple(output for output in self.config.outputs if output != "embedding")
        if others:
            silence = torch.zeros(1, frame_count(self._seconds, self.sample_rate_hz))
            heard = self.teacher.embed(silence, others)
        for output in self.config.outputs:
            known = (self.teacher.embedding_dim,)
            shapes[output] = known if output == "embedding" else tuple(heard[output].shape[1:])
        return shapes

    def _spec(self, output: str, shape: tuple[int, ...], embed: EmbedConfig) -> ArraySpec:
        teacher, top_k = self.teacher, None
        constants: dict[str, Any] = {
            "sample_rate_hz": teacher.sample_rate_hz,
            "window_samples": teacher.window_samples,
            "citation": teacher.citation,
        }
        dtype, rate_hz = embed.embedding_dtype, None
        if output == "frames":
            shape, rate_hz, dtype = *self._frame_form(shape), embed.frames_dtype
        if output == "logits":
            # What a student trained on both the logits and labels has to know; no part of any digest.
            if classes := getattr(teacher, "classes", None):
                constants["classes"] = list(classes)
            top_k, dtype = self.config.logits_top_k, embed.logits_dtype
            if top_k is not None and top_k >= shape[0]:
                raise ConfigError(
                    f"teacher {teacher.name} has too few classes for embed.teacher.logits_top_k",
                    expected=f"1 to {shape[0] - 1}, or none for all {shape[0]}",
                    got=top_k,
                )
        return output_spec(
            teacher.name, teacher.digest(), output, shape, dtype, constants, teacher.licence,
            frame_rate_hz=rate_hz, top_k=top_k,
        )  # fmt: skip

    def _frame_form(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
        own_hz = shape[0] / self._seconds
        asked = self.config.frame_rate_hz
        if asked is None:
            return shape, own_hz
        count = max(1, round(asked * self._seconds))
        if count > shape[0]:
            raise ConfigError(
                f"teacher {self.teacher.name} has no frames at embed.teacher.frame_rate_hz",
                expected=f"at most {own_hz:.4g} Hz ({shape[0]} frames a window)",
                got=f"{asked:g} Hz",
            )
        return (count, *shape[1:]), asked

    def _pooled(self, output: str, made: Tensor) -> Tensor:
        if output != "frames" or self.config.frame_rate_hz is None:
            return made
        count = max(1, round(self.config.frame_rate_hz * self._seconds))
        return F.adaptive_avg_pool1d(made.transpose(1, 2), count).transpose(1, 2)


def build_makers(
    embed: EmbedConfig, cache: Path | None = None, needed: Collection[int] | None = None
) -> list[ArrayMaker | None]:
    """Return the makers of a recipe: its frontends, then its teachers.

    Args:
        embed: stage 1's configuration.
        cache: folder of downloads, where the teachers' weights are.
        needed: positions to build; others are None. Default all.

    Raises:
        WeightsError: a teacher's weights are not there.
        ConfigError: two makers of one array, or outputs that a teacher does not have.
    """
    makers: list[ArrayMaker | None] = []
    configs: tuple[LogMelConfig | TeacherConfig, ...] = (*embed.all_frontends, *embed.all_teachers)
    for position, config in enumerate(configs):
        if needed is not None and position not in needed:
            makers.append(None)
        elif isinstance(config, LogMelConfig):
            makers.append(SpectrogramMaker(config, embed))
        else:
            makers.append(TeacherMaker(build_teacher(config, cache=cache), config, embed))
    paths = [spec.path for maker in makers if maker is not None for spec in maker.specs]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise ConfigError(
            "a frontend or a teacher is listed twice in the recipe", got=", ".join(twice),
            run="take it out of embed.more_frontends or embed.more_teachers",
        )  # fmt: skip
    return makers
