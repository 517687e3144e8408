"""The teacher checker: sound teachers pass whole, and each planted fault is said in words, under its own part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError
from pipeline.teachers.checker import check
from pipeline.teachers.network import NetworkTeacher
from pipeline.teachers.registry import build_teacher


class Sound(NetworkTeacher):
    """A small teacher that keeps the whole contract: energies of 8 bands of the spectrum."""

    code_version = "sound/1"
    name, licence, citation = "sound", "CC0-1.0", "none"
    sample_rate_hz, window_samples, embedding_dim = 8_000, 4_000, 8
    outputs = ("embedding", "frames", "layer.0", "logits")

    def __init__(self) -> None:
        super().__init__(TeacherConfig(dtype="float32"), "0" * 64)

    def compute(self, waveforms: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
        padded = torch.nn.functional.pad(waveforms, (0, max(0, 256 - waveforms.shape[1])))
        power = torch.fft.rfft(padded.unfold(1, 256, 128)).abs().square()[..., :128]
        frames = torch.log(power.unflatten(2, (8, 16)).mean(dim=3) + 1e-4)
        embedding = frames.mean(dim=1)
        return {"embedding": embedding, "frames": frames, "layer.0": embedding, "logits": embedding[:, :3]}


def test_sound_teachers_pass(tmp_path: Path) -> None:
    for teacher in (Sound(), build_teacher(TeacherConfig(name="tiny"))):
        findings = check(teacher)
        assert [f.problem for f in findings if not f.kept] == []
        assert len(findings) == 15


class NoWidth(Sound):
    embedding_dim = 7


class Renamed(Sound):
    outputs = ("embedding", "scores")


class NoLicence(Sound):
    licence = ""


class Embed(Sound):
    """Changes what embed gives by ``spoil``."""

    def embed(self, waveforms: Tensor, outputs: Sequence[str] = ("embedding",)) -> dict[str, Tensor]:
        return self.spoil(waveforms, super().embed(waveforms, outputs))

    def spoil(self, given: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
        return made


class Half(Embed):
    def spoil(self, given: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.half() for name, value in made.items()}


class Gradients(Embed):
    def spoil(self, given: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.clone().requires_grad_() for name, value in made.items()}


class More(Embed):
    def spoil(self, given: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**made, "extra": given}


class BatchNorm(Embed):
    def spoil(self, given: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value - value.mean(dim=0) for name, value in made.items()}


class Dropout(Embed):
    def spoil(self, given: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.nn.functional.dropout(value, 0.5) for name, value in made.items()}


class Deaf(Embed):
    def spoil(self, given: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.ones_like(value) for name, value in made.items()}


class Writes(Embed):
    def embed(self, waveforms: Tensor, outputs: Sequence[str] = ("embedding",)) -> dict[str, Tensor]:
        waveforms.clamp_(-0.2, 0.2)
        return super().embed(waveforms, outputs)


class Logarithm(Sound):
    def compute(self, waveforms: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
        made = super().compute(waveforms, outputs)
        level = waveforms.square().mean(dim=1, keepdim=True).log()
        return {**made, "embedding": made["embedding"] + level}


class OnlyWhole(Sound):
    def compute(self, waveforms: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
        if waveforms.shape[1] % self.window_samples:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return super().compute(waveforms, outputs)


class OtherFrames(Sound):
    """Frames depend on what else was asked for."""

    def compute(self, waveforms: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
        made = super().compute(waveforms, outputs)
        return made if len(outputs) > 1 else {**made, "frames": made["frames"].flip(2)}


class FlatFrames(Sound):
    def compute(self, waveforms: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
        made = super().compute(waveforms, outputs)
        return {**made, "frames": made["frames"].flatten(1)}


class SwallowsNames(Sound):
    def embed(self, waveforms: Tensor, outputs: Sequence[str] = ("embedding",)) -> dict[str, Tensor]:
        made = super().embed(waveforms, [name for name in outputs if name in self.outputs])
        return {name: made.get(name, torch.zeros(len(waveforms), 1)) for name in outputs}


class NoEmpty(Sound):
    def embed(self, waveforms: Tensor, outputs: Sequence[str] = ("embedding",)) -> dict[str, Tensor]:
        if not len(waveforms):
            raise ValueError("empty")
        return super().embed(waveforms, outputs)


class Spreads(Sound):
    def compute(self, waveforms: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
        loudest = waveforms.abs().max()
        made = super().compute(waveforms, outputs)
        return {**made, "embedding": made["embedding"] + 0 * loudest}


class Counter(Sound):
    calls = 0

    def digest(self) -> str:
        self.calls += 1
        return f"{self.calls:064x}"


@pytest.mark.parametrize(
    ("kind", "part", "words"),
    [
        (NoWidth, "a window", "embedding is 8 wide, embedding_dim says 7"),
        (Renamed, "attributes", "['scores'] are none of"),
        (NoLicence, "attributes", "licence is ''"),
        (Half, "a window", "torch.float16"),
        (Gradients, "a window", "carries gradients"),
        (More, "a window", "not the embedding alone"),
        (BatchNorm, "rows apart from their batch", "a clip alone differs"),
        (Dropout, "the same twice", "other embeddings"),
        (Dropout, "its input and torch's settings left alone", "global generator"),
        (Deaf, "different sounds", "does not hear"),
        (Writes, "its input and torch's settings left alone", "writes into"),
        (Logarithm, "silence, full scale and gain", "silence: embedding holds values that are not finite"),
        (OnlyWhole, "longer than a window", "RuntimeError"),
        (OnlyWhole, "shorter than a window", "1 samples (0.000125 s): it raises RuntimeError"),
        (OtherFrames, "every output, alone and together", "frames asked for alone differs"),
        (FlatFrames, "every output, alone and together", "not 2 rows of 2 axes"),
        (SwallowsNames, "an output it does not have", "ConfigError"),
        (NoEmpty, "an empty batch", "ValueError: empty"),
        (Spreads, "a row of NaN", "spoils the other clips"),
        (Counter, "the digest", "differs from call to call"),
    ],
)
def test_each_fault_is_said(kind: Callable[[], Any], part: str, words: str) -> None:
    broken = {finding.part: finding.problem for finding in check(kind()) if not finding.kept}
    assert words in broken.get(part, f"kept; broken are {broken}")


def test_what_is_no_teacher_at_all() -> None:
    (finding,) = check(object())  # type: ignore[arg-type]
    for name in ("sample_rate_hz", "outputs", "licence", "embed", "digest"):
        assert name in finding.problem


def test_tiny_refuses_an_unknown_output() -> None:
    with pytest.raises(ConfigError, match="no output 'logit'"):
        build_teacher(TeacherConfig(name="tiny")).embed(torch.zeros(1, 300), ["logit"])
