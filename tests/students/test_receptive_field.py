"""The receptive field against the gradient's true support, for every family, plain and causal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.students import build_student, students
from pipeline.students.base import Student
from pipeline.students.causal import CausalDynamicShiftMax, CausalGlobalResponseNorm, CausalSqueezeExcitation
from pipeline.students.cp_mobile import GlobalResponseNorm
from pipeline.students.cp_resnet import CP_RESNET_128K
from pipeline.students.eres2net import AttentionalFusion
from pipeline.students.latency import latency
from pipeline.students.micronet import DynamicShiftMax
from pipeline.students.mobilenetv3 import SqueezeExcitation
from pipeline.students.receptive_field import ReceptiveField, receptive_field

# One of each family, with the module whose input is the last map.
FAMILIES = {
    "cnn4": "pool",
    "cp_mobile_6k": "pool",
    "dcase24_baseline": "pool",
    "cp_resnet": "pool",
    "eres2net": "pool",
    "micronet_m0": "avgpool",
    "mn04": "pool",
    "mobile_fcn": "pool",
    "shortchunk_cnn_res": "pool",
}
DRAWS = 3
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "students.md"
# Fewer blocks of the same kind: a gradient through all nineteen says no more.
OPTIONS = {"eres2net": {"blocks": (2, 1, 1, 1, 1)}}


def statistics(student: Student) -> Iterator[nn.Module]:
    """Yield what mixes cells by a statistic, or gates them so sharply that a gradient is lost."""
    kinds = (GlobalResponseNorm, SqueezeExcitation, DynamicShiftMax, AttentionalFusion)
    causal = (CausalGlobalResponseNorm, CausalSqueezeExcitation, CausalDynamicShiftMax)
    yield from (m for m in student.modules() if isinstance(m, kinds + causal))


def smooth(student: Student) -> Student:
    """Make every path carry a gradient: positive weights, no statistics of the clip, normal numbers everywhere."""
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.abs_().add_(0.1)
            module.weight.data /= module.weight[0].numel()
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.bias.data.fill_(0.1)
    for module in statistics(student):
        for parameter in module.parameters():
            parameter.data.zero_()
    return student


def support(student: Student, mels: int, step: int, frames: int, entry: str) -> tuple[int, int]:
    """Return the first and last frame whose change moves ``step`` of the last map, over random inputs."""
    taken: list[Tensor] = []
    handle = student.get_submodule(entry).register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    moved = torch.zeros(frames, dtype=torch.bool)
    for draw in range(DRAWS):
        # Rising and falling in turn, so that a maximum over a window is taken at either of its ends.
        slope = torch.linspace(0, 4 * (-1) ** draw, frames, dtype=torch.float32)
        noise = torch.rand(1, 1, mels, frames, generator=torch.Generator().manual_seed(draw))
        log_mel = (
            1.0 + 0.01 * noise + (slope if draw < 2 else 0.0) - slope.min().clamp(max=0)
        ).requires_grad_()
        student(log_mel)
        # A field's ends weigh so little that their gradient is scaled up, else float32 makes it 0.
        (gradient,) = torch.autograd.grad(1e30 * taken.pop()[..., step].sum(), log_mel)
        moved |= gradient[0, 0].abs().amax(0) > 0
    handle.remove()
    where = moved.nonzero()
    return int(where.min()), int(where.max())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_gradients_support(name: str, causal: bool) -> None:
    torch.manual_seed(0)
    mels = 32
    config = StudentConfig(name=name, width=0.1, causal=causal, options=OPTIONS.get(name, {}))
    student = smooth(build_student(config, mels)).eval()
    field = receptive_field(student, mels)
    # A step whose field is inside the clip on both sides.
    step = -(-max(0, -field.first) // field.step_frames) + 1
    frames = (step + 1) * field.step_frames + max(0, field.last) + field.step_frames
    first, last = support(student, mels, step, frames, FAMILIES[name])
    assert (first, last) == (step * field.step_frames + field.first, step * field.step_frames + field.last)
    assert field.frames == last - first + 1


# One of each family: those whose builders are of one file.
ONE_A_FAMILY = list({students.get(name).__module__: name for name in reversed(students.names())}.values())


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_only_causal_students_have_no_future(name: str) -> None:
    frontend = LogMelConfig(bands="linear") if name == "harmonic_cnn" else LogMelConfig()
    with torch.device("meta"):
        plain = build_student(StudentConfig(name=name, width=0.25), frontend.mels)
    late = latency(plain, frontend)
    assert late.field.whole_future and late.field.lookahead_frames is None
    assert late.algorithmic_ms is None and late.longest_ms is None
    if plain.not_causal is not None:
        return
    with torch.device("meta"):
        causal = build_student(StudentConfig(name=name, width=0.25, causal=True), frontend.mels)
    late = latency(causal, frontend)
    field = late.field
    assert causal.causal is not None
    assert (field.whole_future, field.whole_past, field.lookahead_frames) == (False, True, 0)
    assert field.step_frames == causal.causal.step_frames
    assert field.last == field.step_frames - 1
    row = next(line for line in DOCUMENT.read_text().splitlines() if f"`{name}`" in line and " ms |" in line)
    assert f"| {field.frames} = {late.receptive_field_ms:,.0f} ms | {field.step_frames} =" in row
    assert f"| {late.algorithmic_ms:.0f} to {late.longest_ms:,.0f} ms |" in row


class Branches(Student):
    """A network of known field: a dilated branch and a strided, shifted one, added."""

    def __init__(self) -> None:
        super().__init__(1)
        self.dilated = nn.Conv2d(1, 1, (1, 3), dilation=(1, 5), padding=(0, 5))
        self.mean = nn.AvgPool2d((1, 4), (1, 2), padding=(0, 1))

    def forward(self, log_mel: Tensor) -> Tensor:
        x = self.dilated(log_mel)[..., ::2] + self.mean(F.pad(log_mel, (6, 0)))[..., : log_mel.shape[3] // 2]
        mean: Tensor = x.transpose(2, 3).flatten(1, 2).mean(dim=(1, 2))[:, None]
        return mean


def test_branches_shifts_and_dilation_by_hand() -> None:
    # The dilated branch sees 2j - 5 to 2j + 5; the mean 2j - 1 - 6 to 2j + 2 - 6.
    assert receptive_field(Branches(), 8) == ReceptiveField(-7, 5, 2, True, True)


def test_an_unknown_operation_counts_as_the_whole_clip() -> None:
    class Turned(Branches):
        def forward(self, log_mel: Tensor) -> Tensor:
            return torch.flip(self.dilated(log_mel), (3,))[:, 0, 0, :1]

    field = receptive_field(Turned(), 8)
    assert field.whole_past and field.whole_future


def test_latency_in_milliseconds_by_hand() -> None:
    frontend = LogMelConfig(sample_rate_hz=16_000, n_fft=512, window_length=400, hop_length=160)
    late = latency(build_student(StudentConfig(name="cp_resnet", width=0.25, causal=True), 64), frontend)
    # A stem of 5 frames by 2, a pool of 2 by 2, then convolutions at every fourth frame.
    kernels = [k for stage in CP_RESNET_128K.kernels for block in stage for k in block]
    assert late.field.frames == 5 + 2 + 4 * sum(k - 1 for k in kernels)
    assert late.field.step_frames == 4
    assert late.receptive_field_ms == pytest.approx((late.field.frames - 1) * 10.0 + 25.0)
    assert late.algorithmic_ms == pytest.approx(25.0)
    assert late.step_ms == pytest.approx(40.0)
    assert late.longest_ms == pytest.approx(25.0 + 30.0)
    assert "25 to 55 ms" in str(late)
