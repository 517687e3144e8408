"""The teachers' contract: shapes, determinism, digests, batch independence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, UnknownNameError, WeightsError
from pipeline.processor import bfloat16_is_faster
from pipeline.teachers import precision
from pipeline.teachers.aisfx import Aisfx, AisfxTeacher
from pipeline.teachers.base import Teacher
from pipeline.teachers.registry import build_teacher, teachers


def random_aisfx(dtype: str = "float32", batch_size: int = 32) -> AisfxTeacher:
    """aisfx with drawn weights and running statistics, so that fusing them is seen."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, value in Aisfx().state_dict().items():
        if name.endswith("running_var"):
            state[name] = torch.rand(value.shape, generator=generator) + 0.5
        elif value.dim() == 1:
            state[name] = torch.rand(value.shape, generator=generator)
        else:
            state[name] = value
        if value.dim() == 4:
            state[name] = torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5
    return AisfxTeacher(state, TeacherConfig(dtype=dtype, batch_size=batch_size))


def sound(batch: int, samples: int) -> Tensor:
    return 0.2 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [random_aisfx, lambda: build_teacher(TeacherConfig(name="tiny"))])
def test_contract(make: object) -> None:
    teacher = make()  # type: ignore[operator]
    assert isinstance(teacher, Teacher)
    waveforms = sound(3, teacher.window_samples)
    embedding = teacher.embed(waveforms)["embedding"]
    assert embedding.shape == (3, teacher.embedding_dim)
    assert embedding.dtype == torch.float32
    assert torch.isfinite(embedding).all()
    assert torch.equal(embedding, teacher.embed(waveforms)["embedding"])
    alone = torch.cat([teacher.embed(row[None])["embedding"] for row in waveforms])
    torch.testing.assert_close(embedding, alone, atol=1e-4, rtol=1e-4)
    assert (embedding[0] - embedding[1]).abs().max() > 1e-3
    assert len(teacher.digest()) == 64
    assert teacher.licence
    assert teacher.citation
    assert teacher.embed(waveforms[:0])["embedding"].shape == (0, teacher.embedding_dim)


def test_fused_channels_last_network_equals_the_plain_one() -> None:
    teacher = random_aisfx(batch_size=2)
    generator = torch.Generator().manual_seed(0)
    plain = Aisfx()
    for name, value in plain.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=generator))
        elif value.dim() == 4:
            value.copy_(torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5)
    plain.eval()
    waveforms = sound(1, 180_000)
    blocks = teacher.frontend(waveforms)
    assert blocks.shape[1] == 2
    with torch.inference_mode():
        want, _ = plain(blocks[0])
    torch.testing.assert_close(
        teacher.embed(waveforms)["embedding"][0], want.mean(dim=0), atol=1e-4, rtol=1e-4
    )


def test_digest_depends_on_dtype_and_weights_alone() -> None:
    assert random_aisfx().digest() == random_aisfx(batch_size=1).digest()
    assert random_aisfx().digest() != random_aisfx(dtype="bfloat16").digest()


def test_a_checkpoint_of_another_network_is_refused() -> None:
    state = Aisfx().state_dict()
    state["embedding_net.conv_block1.conv1.weight"] = torch.zeros(32, 1, 3, 3)
    with pytest.raises(WeightsError, match="does not fit aisfx"):
        Aisfx.from_state(state)


def test_tiny_hears_level_and_spectrum() -> None:
    teacher = build_teacher(TeacherConfig(name="tiny"))
    time = torch.arange(20_000) / teacher.sample_rate_hz
    tones = torch.stack([torch.sin(6.2832 * hz * time) for hz in (500.0, 505.0, 6_000.0)])
    low, near, high = teacher.embed(tones)["embedding"]
    quiet = teacher.embed(0.1 * tones[:1])["embedding"][0]
    assert (low - near).norm() < 0.2 * (low - high).norm()
    assert (low - quiet).norm() > (low - near).norm()
    assert teacher.embed(torch.zeros(1, 10))["embedding"].shape == (1, 24)


def test_tiny_refuses_what_it_has_not(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        build_teacher(TeacherConfig(name="tiny"), weights=tmp_path / "x.pth")
    with pytest.raises(ConfigError):
        build_teacher(TeacherConfig(name="tiny", dtype="bfloat16"))


def test_unknown_teacher_names_near_matches() -> None:
    assert {"aisfx", "tiny"} <= set(teachers.names())
    with pytest.raises(UnknownNameError) as caught:
        build_teacher(TeacherConfig(name="asfix"))
    assert "aisfx" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "faster"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512f avx512_bf16\n", False),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512f avx512_bf16 amx_bf16 amx_tile\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx512f avx512_bf16\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx2 fma\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
    ],
)
def test_bfloat16_only_where_it_is_faster(text: str, faster: bool, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert bfloat16_is_faster(torch.device("cpu"), cpuinfo) is faster
    assert bfloat16_is_faster(torch.device("cpu"), tmp_path / "absent") is False


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError):
        precision.resolve(TeacherConfig(device=device))
