"""Ten minutes of frames: the stream, block by block in ONNX Runtime and in torch, ends where the whole signal does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.deploy.onnx_stream import OnnxStream
from pipeline.deploy.stream_export import export_stream
from pipeline.students import build_student
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.streaming import StreamingStep
from tests.deploy import tiny

# The two families with the fewest multiply-accumulates a hop.
FASTEST = ["cp_mobile_6k", "micronet_m0"]
FRONTEND = LogMelConfig(mels=32)
SECONDS = 600
TOLERANCE = 1e-5


def fast(name: str, memory_frames: int | None = None) -> NormalisedStudent:
    torch.manual_seed(0)
    config = StudentConfig(name=name, width=0.5, causal=True, memory_frames=memory_frames)
    student = NormalisedStudent(build_student(config, FRONTEND.mels), -6.0, 4.0).train()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for layer in student.modules():
            if isinstance(layer, nn.BatchNorm2d):
                # Statistics of this very signal: at those of its initialisation a network is all but constant.
                layer.momentum = 1.0
        student(signal(960, batch=4))
    return student.eval()


def signal(frames: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Return log-mel whose level and colour wander, (batch, mels, frames): ten minutes are not all alike."""
    generator = torch.Generator().manual_seed(seed)
    walk = torch.randn(batch, 2, frames, generator=generator).cumsum(-1) / 20.0
    # Besides, the place changes every two minutes or so.
    place = torch.linspace(0, 5, frames).floor()
    tilt = torch.linspace(-1, 1, FRONTEND.mels)[None, :, None]
    noise = 3.0 * torch.randn(batch, FRONTEND.mels, frames, generator=generator)
    level = 2.0 * torch.sin(walk[:, :1]) + 2.0 * torch.sin(3.0 * place)
    log_mel: Tensor = noise + level + 3.0 * tilt * torch.cos(walk[:, 1:] + 2.0 * place) - 6.0
    return log_mel


def ten_minutes(step_frames: int) -> Tensor:
    frames = FRONTEND.frames(SECONDS * FRONTEND.sample_rate_hz)
    return signal(-(-frames // step_frames) * step_frames)


@torch.no_grad()
def ends(student: NormalisedStudent, log_mel: Tensor, blocks: list[int], step: int) -> Tensor:
    """Return the whole-signal network's embeddings after so many blocks, (blocks, dim)."""
    return torch.cat([student(log_mel[..., : number * step]) for number in blocks])


@pytest.mark.parametrize("name", FASTEST)
def test_ten_minutes_in_torch_end_where_the_whole_signal_does(name: str) -> None:
    student = fast(name)
    stepping = StreamingStep(student, FRONTEND.mels)
    step = stepping.step_frames
    log_mel = ten_minutes(step)
    # Uneven portions of whole blocks: what is carried does not depend on how often it is.
    portions = torch.tensor_split(log_mel, [step * n for n in (1, 3, 40, 100, 333, 700)], dim=2)
    carried, made = stepping.initial(), []
    with torch.no_grad():
        for portion in portions:
            embedding, *carried = stepping(portion[:, None], *carried)
            made.append(embedding)
    want = ends(student, log_mel, [log_mel.shape[2] // step], step)
    assert float((made[-1] - want).abs().max()) <= TOLERANCE * float(want.abs().max())
    # The last minutes were heard: without them it would end elsewhere.
    assert float((made[-2] - want).abs().max()) > 100 * TOLERANCE * float(want.abs().max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[NormalisedStudent, Path]]:
    return {}


def step_of(
    name: str, made: dict[str, tuple[NormalisedStudent, Path]], folder: Path
) -> tuple[NormalisedStudent, Path]:
    if name not in made:
        student, path = fast(name), folder / f"{name}.onnx"
        export_stream(student, path, metadata=replace(tiny.metadata(), frontend=FRONTEND))
        made[name] = student, path
    return made[name]


@pytest.mark.parametrize("name", [FASTEST[0], pytest.param(FASTEST[1], marks=pytest.mark.exhaustive)])
@pytest.mark.timeout(900)
def test_ten_minutes_through_onnx_runtime_end_where_the_whole_signal_does(
    name: str, exported: dict[str, tuple[NormalisedStudent, Path]], tmp_path: Path
) -> None:
    student, path = step_of(name, exported, tmp_path)
    stream = OnnxStream(path)
    log_mel = ten_minutes(stream.step_frames)
    made = stream.push(log_mel.numpy())
    blocks = log_mel.shape[2] // stream.step_frames
    assert len(made) == blocks
    sampled = [blocks // 10, blocks // 2, blocks]
    want = ends(student, log_mel, sampled, stream.step_frames)
    got = torch.from_numpy(np.concatenate([made[number - 1] for number in sampled]))
    assert float((got - want).abs().max()) <= TOLERANCE * float(want.abs().max())
    np.testing.assert_array_equal(stream.finish(), made[-1])


def test_with_memory_minutes_do_not_depend_on_how_many_blocks_go_at_once() -> None:
    student = fast(FASTEST[0], memory_frames=500)
    stepping = StreamingStep(student, FRONTEND.mels)
    log_mel = signal(750 * stepping.step_frames)
    ended = []
    for at_once in (5, 30):
        carried = stepping.initial()
        with torch.no_grad():
            for portion in log_mel.split(at_once * stepping.step_frames, dim=2):
                embedding, *carried = stepping(portion[:, None], *carried)
        ended.append(embedding)
    assert float((ended[0] - ended[1]).abs().max()) <= TOLERANCE * float(ended[0].abs().max())
