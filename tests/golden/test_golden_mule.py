"""MULE against its PyTorch port: log-mel, slices, both paths' stages, embedding; the converted file's layout."""

from __future__ import annotations

from typing import Any

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.frontends.mule_frontend import MuleFrontend, slice_starts, windowed_dft
from pipeline.teachers.mule import MuleTeacher
from pipeline.teachers.sf_nfnet import GELU_GAIN, SfNfNetF0
from pipeline.teachers.weights import Weights
from tests.golden import convolutional_teachers as convnets
from tests.golden import golden_vectors as golden
from tests.golden.convolutional_teachers import Golden


@pytest.fixture(scope="module", params=golden.folders("mule_sfnfnet_f0"))
def vectors(request: pytest.FixtureRequest) -> Golden:
    return golden.require(request.param)


@pytest.fixture(scope="module")
def state(vectors: Golden) -> dict[str, Tensor]:
    given = vectors[0]["frontend"]
    bank = librosa.filters.mel(
        sr=given["sample_rate"], n_fft=given["n_fft"], n_mels=given["n_mels"], fmin=given["fmin"],
        fmax=given["fmax"], htk=given["htk"], norm=given["mel_norm"],
    )  # fmt: skip
    n_fft, length = given["n_fft"], given["win_length"]
    window = np.zeros(n_fft)
    start = (n_fft - length) // 2
    window[start : start + length] = librosa.filters.get_window("hann", length, fftbins=True)
    angle = 2.0 * np.pi * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) / n_fft
    constants = {
        "frontend.mel_fb": torch.from_numpy(bank.copy()),
        "frontend.stft.fwd_real": torch.from_numpy(np.cos(angle) * window).float()[:, None].contiguous(),
        "frontend.stft.fwd_imag": torch.from_numpy(-np.sin(angle) * window).float()[:, None].contiguous(),
    }
    return convnets.published_state(vectors, constants)


@pytest.fixture(scope="module")
def teacher(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> MuleTeacher:
    loaded = convnets.load_from_disk("mule", state, tmp_path_factory.mktemp("mule") / "model.safetensors")
    assert isinstance(loaded, MuleTeacher)
    return loaded


def meta_network() -> SfNfNetF0:
    with torch.device("meta"):
        return SfNfNetF0().eval()


def test_state_dict_has_the_published_names_and_shapes(vectors: Golden) -> None:
    network = {f"backbone.{name}": value for name, value in meta_network().state_dict().items()}
    ours = network | MuleFrontend().published_constants()
    assert convnets.names_and_shapes(ours) == convnets.of_spec(vectors[0])


def test_counts_and_constants_are_the_published_ones(vectors: Golden) -> None:
    spec, _ = vectors
    published, constants = spec["published"], spec["config"]["constants"]
    network = meta_network()
    assert sum(p.numel() for p in network.parameters()) == published["params_measured"]
    run = lambda x: network.stages(x)  # noqa: E731
    macs = convnets.multiply_accumulates(network, run, 1, 1, 96, 300)
    assert macs == published["macs_measured_one_slice"]
    for stages in (network.slow_stages, network.fast_stages):
        betas = [[block.beta for block in stage.blocks] for stage in stages]
        for ours, theirs in zip(betas, constants["betas"], strict=True):
            assert ours == pytest.approx(theirs)
    assert constants["scaled_gelu_gain"] == GELU_GAIN


def test_every_tap_equals_the_reference(
    vectors: Golden, state: dict[str, Tensor], record_property: Any
) -> None:
    spec, _ = vectors
    folder = str(spec["model"])
    frontend = MuleFrontend()
    waveforms = convnets.waveforms(spec)
    slices = frontend(waveforms)
    flat = slices.flatten(0, 1)[:, None]
    worst = convnets.check(
        folder,
        vectors,
        {"features": frontend.log_mel(waveforms), "slices": flat},
        convnets.through_the_frontend,
    )
    network = meta_network()
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    network.load_state_dict(backbone, assign=True)
    modules = {
        "slow_stem": "slow_stem",
        "fast_stem": "fast_stem",
        "fuse0": "fusions.0",
        "slow_block0": "slow_stages.0.blocks.0",
        "fast_block1": "fast_stages.1.blocks.1",
        "residual": "slow_stages.0.blocks.0.convs.3",
        "gates": "slow_stages.0.blocks.0.se",
        **{f"{path}_stage{i}": f"{path}_stages.{i}" for path in ("slow", "fast") for i in range(4)},
    }
    with convnets.recorded(network, modules) as found:
        stages = network.stages(flat)
        found["slice_embeddings"] = network.embedding(*stages[-1])
    found["slow_se0"] = found["residual"] * found["gates"]
    found["embedding"] = found["slice_embeddings"].reshape(*slices.shape[:2], -1).mean(dim=1)
    # The spec stores a third of the slices' frames only, but ours are the reference's to the last digits.
    values = {tap: found[tap] for tap in spec["taps"] if tap not in ("features", "slices")}
    worst = max(worst, convnets.check(folder, vectors, values, convnets.rounding))
    record_property("worst_deviation", worst)


def test_the_teacher_from_the_published_file_equals_the_reference(
    vectors: Golden, teacher: MuleTeacher
) -> None:
    spec, taps = vectors
    made = teacher.embed(convnets.waveforms(spec), teacher.outputs)
    values = {"embedding": made["embedding"], "slice_embeddings": made["frames"].flatten(0, 1)}
    convnets.check(str(spec["model"]), vectors, values, convnets.rounding)
    assert teacher.embedding_dim == spec["published"]["embedding_dim"]
    widths = [
        a + b for a, b in zip(*(spec["config"][f"{p}_stage_out"] for p in ("slow", "fast")), strict=True)
    ]
    assert [made[f"layer.{i}"].shape[1] for i in range(4)] == widths
    assert len(taps["slice_embeddings"]) == made["frames"].shape[0] * made["frames"].shape[1]


def test_the_files_own_constants_may_be_absent(
    vectors: Golden, state: dict[str, Tensor], teacher: MuleTeacher
) -> None:
    kept = {name: value for name, value in state.items() if "stft" not in name}
    loaded = MuleTeacher(Weights(kept, {}, "0" * 64, "-", "-"), TeacherConfig(name="mule", dtype="float32"))
    clip = convnets.waveforms(vectors[0])[:1, :30_000]
    torch.testing.assert_close(loaded.embed(clip), teacher.embed(clip))


def test_slices_of_short_and_long_clips() -> None:
    assert slice_starts(10) == slice_starts(300) == [0]
    assert slice_starts(451) == [50, 151]
    assert slice_starts(1001) == [50, 250, 450, 650, 701]
    frontend = MuleFrontend()
    clip = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    frames = 1 + 20_000 // 160
    repeated = frontend(clip)[0, 0]
    assert torch.equal(repeated[:, frames - 1 :], repeated[:, frames - 1 : frames].expand(-1, 301 - frames))
    clip = torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0))
    mirrored = frontend(clip)[0, 0]
    assert torch.equal(mirrored[:, 201:300], mirrored[:, 101:200].flip(1))
    assert frontend(torch.zeros(2, 5)).shape == (2, 1, 96, 300)


def test_the_dft_is_one_to_float32_angles() -> None:
    exact = np.exp(-2j * np.pi * np.outer(np.arange(1025), np.arange(2048)) / 2048)
    exact[:, :824], exact[:, 1224:] = 0.0, 0.0
    exact[:, 824:1224] *= librosa.filters.get_window("hann", 400, fftbins=True)
    cosines, sines = windowed_dft().double().chunk(2)
    np.testing.assert_allclose(cosines.numpy(), exact.real, atol=5e-4)
    np.testing.assert_allclose(sines.numpy(), exact.imag, atol=5e-4)
