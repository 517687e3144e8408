"""PANNs CNN14 against the authors' code: frontend, blocks, embedding, logits; the published file's layout."""

from __future__ import annotations

from typing import Any

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.frontends.panns_frontend import AT_16_KHZ, AT_32_KHZ, PannsFrontend
from pipeline.teachers.panns import Cnn14, PannsTeacher
from tests.golden import convolutional_teachers as convnets
from tests.golden import golden_vectors as golden
from tests.golden.convolutional_teachers import Golden

FRONTENDS = {"panns_cnn14": AT_32_KHZ, "panns_cnn14_16k": AT_16_KHZ}


@pytest.fixture(scope="module", params=golden.folders(*FRONTENDS))
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def vectors(folder: str) -> Golden:
    return golden.require(folder)


def torchlibrosa_constants(config: dict[str, Any]) -> dict[str, Tensor]:
    """The three constants as torchlibrosa 0.1 computes them, from the spec's numbers."""
    n_fft = config["n_fft"]
    root = np.exp(-2j * np.pi / n_fft)
    dft = root ** np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1))
    kernels = (dft * librosa.filters.get_window("hann", n_fft, fftbins=True)[:, None]).T[:, None]
    bank = librosa.filters.mel(
        sr=config["sample_rate"],
        n_fft=n_fft,
        n_mels=config["n_mels"],
        fmin=config["fmin"],
        fmax=config["fmax"],
    )
    return {
        "spectrogram_extractor.stft.conv_real.weight": torch.from_numpy(kernels.real.copy()).float(),
        "spectrogram_extractor.stft.conv_imag.weight": torch.from_numpy(kernels.imag.copy()).float(),
        "logmel_extractor.melW": torch.from_numpy(bank.T.copy()).float(),
    }


@pytest.fixture(scope="module")
def state(vectors: Golden) -> dict[str, Tensor]:
    return convnets.published_state(vectors, torchlibrosa_constants(vectors[0]["frontend"]))


@pytest.fixture(scope="module")
def teacher(
    folder: str, vectors: Golden, state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> PannsTeacher:
    spec, _ = vectors
    sampler = {
        "indexes_per_class": [np.arange(3), np.arange(5)],
        "queue": [np.int64(3), 1],
        "pointers_of_classes": [0, 2],
    }
    payload = {"iteration": 600_000, "model": state, "sampler": sampler}
    file = tmp_path_factory.mktemp("panns") / spec["checkpoint"]["files"][0]
    loaded = convnets.load_from_disk(folder, payload, file)
    assert isinstance(loaded, PannsTeacher)
    return loaded


def test_state_dict_has_the_published_names_and_shapes(folder: str, vectors: Golden) -> None:
    with torch.device("meta"):
        network = Cnn14()
    ours = network.state_dict() | PannsFrontend(FRONTENDS[folder]).published_constants()
    assert convnets.names_and_shapes(ours) == convnets.of_spec(vectors[0])


def test_counts_are_the_measured_ones(folder: str, vectors: Golden) -> None:
    published, config = vectors[0]["published"], FRONTENDS[folder]
    with torch.device("meta"):
        network = Cnn14().eval()
    assert sum(p.numel() for p in network.parameters()) == published["params_measured"]
    frames = 1 + 10 * config.sample_rate_hz // config.hop_length

    def run(log_mel: Tensor) -> None:
        pooled = network.pooled(network.maps(log_mel)[-1].mean(dim=3).transpose(1, 2))
        network.fc_audioset(network.embedding(pooled))

    macs = convnets.multiply_accumulates(network, run, 1, frames, 64)
    assert macs == published["macs_measured_10s"]


def test_every_tap_equals_the_reference(
    folder: str, vectors: Golden, state: dict[str, Tensor], record_property: Any
) -> None:
    spec, taps = vectors
    features = PannsFrontend(FRONTENDS[folder])(convnets.waveforms(spec))
    with torch.device("meta"):
        network = Cnn14()
    kept = {name: value for name, value in state.items() if "extractor" not in name}
    network.load_state_dict(kept, assign=True)
    network.eval()
    worst = convnets.check(folder, vectors, {"features": features[:, None]}, convnets.through_the_frontend)
    for given, allowed in (
        (features, convnets.through_the_frontend),
        (torch.from_numpy(taps["features"][:, 0]), convnets.rounding),
    ):
        with torch.inference_mode():
            maps = network.maps(given)
            pooled = network.pooled(maps[-1].mean(dim=3).transpose(1, 2))
            embedding = network.embedding(pooled)
            values = {
                "bn0": network.normalised(given),
                **{f"block{index}": one for index, one in enumerate(maps, start=1)},
                "pooled": pooled,
                "fc1": network.fc1(pooled),
                "embedding": embedding,
                "logits": network.fc_audioset(embedding),
                "clipwise_output": network.fc_audioset(embedding).sigmoid(),
            }
        values = {tap: values[tap] for tap in spec["taps"] if tap != "features"}
        worst = max(worst, convnets.check(folder, vectors, values, allowed))
    record_property("worst_deviation", worst)


def test_the_teacher_from_the_published_file_equals_the_reference(
    folder: str, vectors: Golden, teacher: PannsTeacher
) -> None:
    spec, _ = vectors
    waveforms = convnets.waveforms(spec)
    made = teacher.embed(waveforms, teacher.outputs)
    values = {tap: made[tap] for tap in ("embedding", "logits")}
    convnets.check(folder, vectors, values, convnets.through_the_frontend)
    assert teacher.embedding_dim == spec["published"]["embedding_dim"] == made["embedding"].shape[1]
    block6 = spec["taps"]["block6"]["full_shape"]
    assert list(made["frames"].shape) == [block6[0], block6[2], block6[1]]
    torch.testing.assert_close(made["layer.5"], made["frames"].mean(dim=1))


def test_a_clip_of_one_frame_is_followed_by_silence(teacher: PannsTeacher) -> None:
    clip = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(clip, (0, teacher.least_samples - 100))
    short = teacher.embed(clip, ("embedding", "frames"))
    assert short["frames"].shape[1] == 1
    torch.testing.assert_close(short["embedding"], teacher.embed(padded)["embedding"], atol=1e-4, rtol=1e-4)
