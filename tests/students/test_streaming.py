"""Causal students: a stream equals the whole signal so far; who cannot says why; names and shapes stay published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.errors import ConfigError
from pipeline.students import build_student, students
from pipeline.students.base import Student
from pipeline.students.causal import causal_form, make_causal
from pipeline.students.causal_layers import CausalAvgPool2d, CausalConv2d, CausalMaxPool2d, pair
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.saved import load_student, save_student
from pipeline.students.streaming import Stream
from tests.students.names import ONE_A_FAMILY

# One of each family: those whose builders are of one file.
CAUSAL = [
    "cnn4", "cp_mobile_6k", "cp_resnet", "dcase24_baseline", "eres2net", "micronet_m0", "mn04", "mobile_fcn",
    "shortchunk_cnn_res", "harmonic_cnn",
]  # fmt: skip
BLOCKS = 3
TOLERANCE = 1e-5


def mels_of(name: str) -> int:
    return LogMelConfig(bands="linear").mels if name == "harmonic_cnn" else 32


def small(name: str, memory_frames: int | None = None, *, causal: bool = True) -> NormalisedStudent:
    """Return a small student whose weights and running statistics are not those of its initialisation."""
    torch.manual_seed(0)
    config = StudentConfig(
        name=name,
        width=0.1,
        causal=causal,
        memory_frames=memory_frames,
    )
    mels = mels_of(name)
    student = NormalisedStudent(build_student(config, mels), -6.0, 4.0).train()
    with torch.no_grad():
        student(clip(mels, 300, batch=4))
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student.eval()


def clip(mels: int, frames: int, batch: int = 2, seed: int = 1) -> Tensor:
    """Return log-mel that is not the same everywhere in time: (batch, mels, frames)."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(batch, 1, frames, generator=generator).cumsum(-1) / frames**0.5
    noise = torch.randn(batch, mels, frames, generator=generator)
    log_mel: Tensor = 4.0 * (noise + level) - 6.0
    return log_mel


@torch.no_grad()
def so_far(student: NormalisedStudent, log_mel: Tensor, step: int) -> Tensor:
    """Return the whole-signal network's embeddings of the signal up to the end of each block."""
    return torch.stack([student(log_mel[..., : i * step]) for i in range(1, log_mel.shape[2] // step + 1)], 1)


@pytest.mark.parametrize(
    ("name", "memory_frames"),
    # Each kind of statistic with memory too: mean and maximum, response norm, deviation, gates.
    [(name, None) for name in CAUSAL] + [(name, 60) for name in ("cnn4", "cp_mobile_6k", "eres2net", "mn04")],
)
def test_a_stream_equals_the_whole_signal_so_far(name: str, memory_frames: int | None) -> None:
    student, mels = small(name, memory_frames), mels_of(name)
    stream = Stream(student, mels, batch=2)
    step = stream.step.step_frames
    log_mel = clip(mels, BLOCKS * step + 1)
    want = so_far(student, log_mel, step)
    scale = float(want.abs().max())
    portions = log_mel.split([1, 2 * step, step - 2, 2], dim=2) if step > 2 else log_mel.split(1, dim=2)
    got = torch.cat([stream.push(portion) for portion in portions], dim=1)
    assert got.shape == want.shape == (2, BLOCKS, student.embedding_dim)
    assert float((got - want).abs().max()) <= TOLERANCE * scale
    # It hears something new in every block, else equality would say nothing.
    assert (want.diff(dim=1).abs().amax(dim=(0, 2)) > 1e-4 * scale).all()
    with torch.no_grad():
        assert float((stream.finish() - student(log_mel)).abs().max()) <= TOLERANCE * scale
    # After the end it starts anew.
    again = stream.push(log_mel[..., :step])
    assert float((again - want[:, :1]).abs().max()) <= TOLERANCE * scale


def test_blocks_of_several_steps_and_streams_side_by_side_do_not_matter() -> None:
    student = small("cp_mobile_6k")
    log_mel = clip(32, 48)
    together = Stream(student, 32, batch=2)
    apart = [Stream(student, 32) for _ in range(2)]
    want = torch.cat([together.push(frame) for frame in log_mel.split(1, dim=2)], dim=1)
    got = torch.cat([stream.push(row[None]) for stream, row in zip(apart, log_mel, strict=True)])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    # The step takes any whole number of blocks at once.
    step = together.step
    carried = step.initial(2)
    with torch.no_grad():
        embedding, *_ = step(log_mel[:, None], *carried)
    torch.testing.assert_close(embedding, want[:, -1], rtol=1e-5, atol=1e-6)


def test_what_is_carried_goes_with_the_step_and_not_with_the_network() -> None:
    student = small("mn04")
    with torch.no_grad():
        before = student(clip(32, 64))
    stream = Stream(student, 32, batch=2)
    stream.push(clip(32, 96, seed=5))
    with torch.no_grad():
        assert torch.equal(student(clip(32, 64)), before)


def test_with_memory_a_stream_forgets_and_without_it_does_not() -> None:
    ends = {}
    for memory in (16, None):
        student = small("cp_mobile_6k", memory)
        late = clip(32, 400, batch=1, seed=3)
        made = []
        for seed in (1, 2):
            stream = Stream(student, 32)
            stream.push(clip(32, 200, batch=1, seed=seed) * (1.0 + seed))
            made.append(stream.push(late)[:, -1])
        ends[memory] = float((made[0] - made[1]).abs().max() / made[0].abs().max())
    assert ends[16] < 1e-3 < ends[None]


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_a_family_is_causal_or_says_why_not(name: str) -> None:
    config = StudentConfig(name=name, width=0.25, causal=True)
    mels = mels_of(name)
    with torch.device("meta"):
        plain = build_student(config.model_copy(update={"causal": False}), mels)
        if plain.not_causal is not None:
            with pytest.raises(ConfigError, match="no causal form") as refused:
                build_student(config, mels)
            assert plain.not_causal in str(refused.value)
            with pytest.raises(ConfigError, match="cannot listen to a stream"):
                Stream(plain, mels)
            return
        causal = build_student(config, mels)
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    assert {key: value.shape for key, value in causal.state_dict().items()} == shapes
    assert list(causal.state_dict()) == list(plain.state_dict())


def test_the_families_that_can_are_those_tested() -> None:
    with torch.device("meta"):
        able = {n for n in ONE_A_FAMILY if build_student(StudentConfig(name=n), 257).not_causal is None}
    modules = {students.get(name).__module__ for name in CAUSAL}
    assert {students.get(name).__module__ for name in able} == modules


def test_a_causal_student_is_saved_and_comes_back(tmp_path: Path) -> None:
    student = small("cp_mobile_6k", 60)
    config = StudentConfig(name="cp_mobile_6k", width=0.1, causal=True, memory_frames=60)
    save_student(tmp_path, student, config, LogMelConfig(mels=32))
    loaded = load_student(tmp_path)
    assert loaded.backbone.causal == student.backbone.causal
    with torch.no_grad():
        assert torch.equal(loaded(clip(32, 50)), student(clip(32, 50)))


def test_a_causal_student_learns_in_bfloat16() -> None:
    student: Student = small("cp_mobile_6k").backbone
    student = student.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    x, target = clip(32, 40, batch=8)[:, None], torch.randn(8, student.embedding_dim)
    optimiser = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embedding = student(x)
        loss = (embedding - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_silence_from_the_start_gives_finite_gradients() -> None:
    student = small("cp_mobile_6k").backbone.train()
    student(torch.zeros(2, 1, 32, 24)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, (3, 5), (2, 1), (1, 2), (1, 2), groups=2),
        nn.Conv2d(2, 3, 5, 2, 1, bias=False),
        nn.Conv2d(2, 3, 1, 2),
        nn.MaxPool2d((2, 3), (2, 3)),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, (2, 2), 1),
        nn.AvgPool2d((1, 4), (1, 2)),
    ],
)
def test_a_causal_layer_is_the_layer_on_a_signal_moved_to_the_right(layer: Any) -> None:
    causal = causal_form(layer)
    assert isinstance(causal, CausalConv2d | CausalMaxPool2d | CausalAvgPool2d)
    x = torch.randn(2, 2, 9, 12)
    (_, step), (rows, kernel) = pair(layer.stride), pair(layer.kernel_size)
    padding = (pair(layer.padding)[0], 0)
    dilation = pair(layer.dilation)[1] if isinstance(layer, nn.Conv2d) else 1
    fill = -torch.inf if isinstance(layer, nn.MaxPool2d) else 0.0
    # Output j is that of the layer, unpadded in time, on the window that ends with the block's last step.
    reach = dilation * (kernel - 1) + 1
    with torch.no_grad():
        got = causal(x)
        assert got.shape[3] == x.shape[3] // step
        for j in range(got.shape[3]):
            end = (j + 1) * step
            heard = x[..., max(0, end - reach) : end]
            window = nn.functional.pad(heard, (reach - heard.shape[3], 0), value=fill)
            if isinstance(layer, nn.Conv2d):
                want = nn.functional.conv2d(
                    window, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups
                )
            else:
                same = type(layer)((rows, kernel), layer.stride, padding, ceil_mode=layer.ceil_mode)
                want = same(window)
            torch.testing.assert_close(got[..., j : j + 1], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AdaptiveAvgPool2d(2),
    ],
)
def test_a_layer_without_a_causal_form_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ConfigError, match="causal form"):
        causal_form(layer)


def test_wrong_use_is_one_clear_error() -> None:
    student = small("cp_mobile_6k")
    with pytest.raises(ConfigError, match="causal already"):
        make_causal(student.backbone, 32)
    stream = Stream(student, 32)
    with pytest.raises(ConfigError, match="another stream"):
        stream.push(torch.zeros(1, 40, 8))
    with pytest.raises(ConfigError, match="before its first frame"):
        stream.finish()
    with pytest.raises(ConfigError, match=r"student\.causal=true"):
        Stream(small("cp_mobile_6k", causal=False), 32)
    with pytest.raises(ValueError, match="memory_frames"):
        StudentConfig(name="cp_mobile_6k", memory_frames=5)
