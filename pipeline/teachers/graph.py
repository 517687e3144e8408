"""A published graph file (ONNX, TFLite) as a teacher: declared by a few lines of a recipe, no code.

What the runtimes share: the options, the windows, and how tensors become outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pipeline.artifact import file_digest
from pipeline.checkpoints.table import known, of_teacher
from pipeline.config import LogMelConfig, Section, TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.frontends.log_mel import LogMel
from pipeline.teachers import weights
from pipeline.teachers.network import NetworkTeacher

MAX_GRAPH_BYTES = 2 << 30


class GraphOptions(Section):
    """``[embed.teacher.options]`` of the teachers ``onnx`` and ``tflite``."""

    name: str = Field(
        "", pattern=r"^[a-z0-9_.-]*$", description="how the store calls it; default the file's stem"
    )
    checkpoint: str | None = Field(
        None, description="a fetched graph of `ossicle teachers`, in place of weights"
    )
    sample_rate_hz: int = Field(gt=0, description="of the sound it hears")
    input: Literal["waveform", "log_mel"] = Field("waveform", description="what the graph takes")
    input_name: str | None = Field(None, description="its input, where it has several")
    window_samples: int | None = Field(
        None, gt=0, description="samples a forward pass (input = waveform); default the graph's own"
    )
    hop_samples: int | None = Field(
        None, gt=0, description="between windows of longer sound; default none overlap"
    )
    log_mel: LogMelConfig | None = Field(None, description="every constant of the log-mel it was trained on")
    mel_scale: float = Field(1.0, description="the log-mel is multiplied by this")
    mel_shift: float = Field(0.0, description="then this is added")
    layout: Literal["time_mel", "mel_time"] = Field("time_mel", description="order of a patch's axes")
    patch_frames: int | None = Field(None, gt=0, description="frames a forward pass (input = log_mel)")
    hop_frames: int | None = Field(None, gt=0, description="between patches; default none overlap")
    batch: int | None = Field(
        None, gt=0, description="windows that the graph takes at once, filled up; default what it declares"
    )
    embedding: str | int = Field(
        description="output or inner tensor (name, or TFLite's number) cached as embedding"
    )
    logits: str | int | None = Field(None, description="likewise, cached as logits")
    logits_are: Literal["logits", "sigmoid", "softmax"] = Field(
        "logits", description="what that tensor holds; a sigmoid or softmax is undone, exactly to about 1e-6"
    )
    pool: Literal["none", "channels_first", "channels_last"] = Field(
        "none", description="mean over every axis of the embedding but batch and channels"
    )
    quantisation: dict[str, tuple[float, int]] = Field(
        {}, description='tensor to (scale, zero point), where the graph does not say: {"fc" = [0.02, -128]}'
    )
    licence: str = Field("", description="of the weights")
    citation: str = Field("", description="authors, title, venue, year")

    @model_validator(mode="after")
    def _possible(self) -> GraphOptions:
        if self.input == "log_mel":
            if self.log_mel is None or self.patch_frames is None:
                raise ValueError("input = log_mel needs the table log_mel and patch_frames")
            if self.log_mel.sample_rate_hz != self.sample_rate_hz:
                raise ValueError(
                    f"log_mel.sample_rate_hz is {self.log_mel.sample_rate_hz}, sample_rate_hz another"
                )
        if self.input == "waveform" and (self.log_mel or self.patch_frames or self.hop_frames):
            raise ValueError("log_mel, patch_frames and hop_frames are of input = log_mel")
        return self


@dataclass(frozen=True)
class GraphFile:
    """A verified graph file, and whose it is."""

    path: Path
    sha256: str
    name: str
    licence: str
    citation: str


class GraphRun(Protocol):
    """A graph in its runtime.

    Attributes:
        input_shape: of the input, batch first; None where any size goes, one axis fewer for a graph without batch.
        tensors: names (or numbers) that ``run`` was built to give.
    """

    input_shape: tuple[int | None, ...]

    def run(self, batch: np.ndarray) -> dict[str | int, np.ndarray]:
        """Return the asked tensors as float32, dequantised."""
        ...


def locate(kind: str, config: TeacherConfig, options: GraphOptions, cache: Path | None) -> GraphFile:
    """Return the graph file that a recipe names, its digest known or trusted.

    Raises:
        ConfigError: no file, licence or citation is named.
        WeightsError: the file is absent, too large, or of an unknown digest.
    """
    if options.checkpoint is not None:
        entry = known(options.checkpoint)
        if entry.teacher != kind:
            raise ConfigError(f"checkpoint {entry.name!r} is for teacher {entry.teacher!r}", got=kind)
        found = weights.locate(entry.name, config, cache)
        if found.path is None:
            raise weights.absent(entry, cache)
        return GraphFile(found.path, found.sha256, options.name or entry.name, entry.licence, entry.citation)
    path = config.weights
    if path is None:
        raise ConfigError(
            f"teacher {kind!r} needs a graph file", expected=f"embed.teacher.weights = a .{kind} file"
        )
    if not path.is_file():
        raise WeightsError("the graph file is not there", expected=path, got="no such file")
    if path.stat().st_size > MAX_GRAPH_BYTES:
        raise WeightsError(
            f"{path.name} is too large for one graph file", expected=f"{MAX_GRAPH_BYTES} bytes"
        )
    digest = file_digest(path)
    listed = [entry for entry in of_teacher(kind) if entry.sha256 == digest]
    name = options.name or path.stem.lower().replace(" ", "_")
    if listed:
        return GraphFile(path, digest, options.name or listed[0].name, listed[0].licence, listed[0].citation)
    if config.trust_sha256 != digest:
        raise WeightsError(
            f"{path.name} is not a known file, so it is not trusted by itself",
            expected=f"SHA-256 {config.trust_sha256}"
            if config.trust_sha256
            else "embed.teacher.trust_sha256",
            got=f"SHA-256 {digest}",
            run=f"if you trust its source: --set embed.teacher.trust_sha256={digest}",
        )
    for key in ("licence", "citation"):
        if not getattr(options, key):
            raise ConfigError(
                f"whose graph is {path.name}? Its {key} follows everything distilled from it",
                expected=f"embed.teacher.options.{key}",
            )
    return GraphFile(path, digest, name, options.licence, options.citation)


class GraphTeacher(NetworkTeacher):
    """A graph that hears windows of one size.

    Sound shorter than a window (or patch) is followed by silence. Longer sound is cut into windows at the hop,
    a last incomplete one dropped; ``embedding`` and ``logits`` are means over the windows, ``frames`` are the
    windows' own embeddings.
    """

    kind: ClassVar[str]

    def __init__(self, config: TeacherConfig, options: GraphOptions, file: GraphFile) -> None:
        # A graph computes in the number formats that it was exported with, whatever the machine prefers.
        if config.dtype == "bfloat16":
            raise ConfigError(f"teacher {self.kind!r} runs its graph as exported", got="dtype bfloat16")
        own = options.model_dump(mode="json", exclude={"name", "checkpoint", "licence", "citation"})
        super().__init__(config.model_copy(update={"dtype": "float32"}), file.sha256, own)
        self.own, self.name, self.licence, self.citation = options, file.name, file.licence, file.citation
        self.sample_rate_hz = options.sample_rate_hz
        self.log_mel = LogMel(options.log_mel).to(self.device).eval() if options.log_mel else None
        self.graph = self.open(file.path)
        self.window_samples = self._window_samples()
        heard = self._outputs(np.zeros((1, *self._unit_shape()), np.float32))
        self.embedding_dim = heard["embedding"].shape[1]
        self.outputs = ("embedding", *(("logits",) if options.logits is not None else ()), "frames")

    @abstractmethod
    def open(self, path: Path) -> GraphRun:
        """Return the graph in its runtime, giving the tensors that the options name.

        Raises:
            WeightsError: it is damaged, hostile, or needs operators that the runtime lacks.
            ConfigError: it has no tensor of an asked name.
        """

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return ``embedding``, ``frames`` and, where named, ``logits`` of waveforms at ``sample_rate_hz``."""
        units = self._units(waveforms)
        flat = np.ascontiguousarray(units.flatten(0, 1).cpu().numpy())
        made = {
            name: torch.from_numpy(value).unflatten(0, units.shape[:2])
            for name, value in self._outputs(flat).items()
        }
        means = {name: value.mean(dim=1) for name, value in made.items()}
        return {**means, "frames": made["embedding"]}

    def cost_input(self, samples: int) -> tuple[tuple[int, ...], int]:
        """Return the shape of one forward pass's input, and how many passes hear ``samples`` samples."""
        units = self._units(torch.zeros(1, samples, device=self.device)).shape[1]
        shape = self._given_shape(self._unit_shape())
        declared = self.graph.input_shape
        if len(declared) == len(shape):
            return shape, units
        size = self.own.batch or declared[0] or 1
        return (size, *shape), -(-units // size)

    def _units(self, waveforms: Tensor) -> Tensor:
        """Return the windows or patches of each waveform, (batch, units, ...)."""
        options = self.own
        padded = F.pad(waveforms, (0, max(0, self.window_samples - waveforms.shape[1])))
        if self.log_mel is None:
            return padded.unfold(1, self.window_samples, options.hop_samples or self.window_samples)
        level = self.log_mel(padded) * options.mel_scale + options.mel_shift
        patch = options.patch_frames or 1
        patches = level.unfold(2, patch, options.hop_frames or patch)
        order = (0, 2, 3, 1) if options.layout == "time_mel" else (0, 2, 1, 3)
        ordered: Tensor = patches.permute(*order)
        return ordered

    def _unit_shape(self) -> tuple[int, ...]:
        if self.log_mel is None:
            return (self.window_samples,)
        shape = (self.own.patch_frames or 1, self.log_mel.config.mels)
        return shape if self.own.layout == "time_mel" else shape[::-1]

    def _window_samples(self) -> int:
        options = self.own
        if options.log_mel is not None:
            mel, patch = options.log_mel, options.patch_frames or 1
            return (patch - 1) * mel.hop_length + (1 if mel.center else mel.n_fft)
        declared = [size for size in self.graph.input_shape[-1:] if size is not None]
        if options.window_samples is None and not declared:
            raise ConfigError(
                f"{self.name} hears windows of any length", expected="embed.teacher.options.window_samples"
            )
        if options.window_samples is not None and declared and options.window_samples != declared[0]:
            raise ConfigError(
                "embed.teacher.options.window_samples is not the graph's", expected=declared[0],
                got=options.window_samples,
            )  # fmt: skip
        return options.window_samples or declared[0]

    def _given_shape(self, unit: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one unit as the graph takes it: ``unit`` with the axes of length 1 beside it."""
        declared = self.graph.input_shape
        axes = declared[1:] if len(declared) > len(unit) else declared
        kept = axes if len(axes) == len(unit) else tuple(size for size in axes if size != 1)
        if len(kept) != len(unit) or any(k not in (None, u) for k, u in zip(kept, unit, strict=True)):
            expected = "x".join("any" if size is None else str(size) for size in declared)
            got = "x".join(map(str, unit))
            raise ConfigError(f"{self.name} takes another input", expected=expected, got=f"{got} a window")
        if len(axes) == len(unit):
            return unit
        sizes = iter(unit)
        return tuple(1 if size == 1 else next(sizes) for size in axes)

    def _outputs(self, units: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``embedding`` (and ``logits``) of each unit, (units, width) float32."""
        declared, shape = self.graph.input_shape, self._given_shape(units.shape[1:])
        has_batch = len(declared) > len(shape)
        fixed = (self.own.batch or declared[0]) if has_batch else 1
        size = fixed or self.batch_size
        parts: list[dict[str, np.ndarray]] = []
        for start in range(0, len(units), size):
            part = units[start : start + size]
            count = len(part)
            if fixed and count < fixed:
                part = np.concatenate([part, np.zeros((fixed - count, *part.shape[1:]), np.float32)])
            made = self.graph.run(part.reshape((len(part), *shape) if has_batch else shape))
            named = {"embedding": self._embedding(made[self.own.embedding], len(part))}
            if self.own.logits is not None:
                given = self._rows(made[self.own.logits], len(part), "logits")
                named["logits"] = before_activation(given, self.own.logits_are)
            parts.append({name: value[:count] for name, value in named.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _embedding(self, value: np.ndarray, count: int) -> np.ndarray:
        if count == 1 and value.shape[0] != 1:
            value = value[None]
        if self.own.pool == "none" or value.ndim <= 2:
            return self._rows(value, count, "embedding")
        axes = range(2, value.ndim) if self.own.pool == "channels_first" else range(1, value.ndim - 1)
        return self._rows(value.mean(axis=tuple(axes)), count, "embedding")

    def _rows(self, value: np.ndarray, count: int, output: str) -> np.ndarray:
        own_axes = value.shape if count == 1 else value.shape[1:]
        if (count > 1 and value.shape[0] != count) or sum(size > 1 for size in own_axes) > 1:
            raise ConfigError(
                f"the tensor {getattr(self.own, output)!r} of {self.name} is no vector a window",
                expected=f"{count} x width" + (" (see options.pool)" if output == "embedding" else ""),
                got="x".join(map(str, value.shape)),
            )
        return np.ascontiguousarray(value.reshape(count, -1), dtype=np.float32)


def before_activation(value: np.ndarray, activation: Literal["logits", "sigmoid", "softmax"]) -> np.ndarray:
    """Return what went into ``activation``; of a softmax up to a constant. Saturated values end at +-16."""
    if activation == "logits":
        return value
    probability = np.clip(value.astype(np.float64), 1e-7, 1.0 - 1e-7)
    other = 1.0 - probability if activation == "sigmoid" else 1.0
    return np.asarray(np.log(probability / other), dtype=np.float32)


def dequantised(value: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int) -> np.ndarray:
    """Return ``scale * (value - zero_point)`` as float32: what an integer tensor stands for."""
    return np.asarray(scale * (value.astype(np.float32) - zero_point), dtype=np.float32)
