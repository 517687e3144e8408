"""Short-chunk CNN and Harmonic CNN against their authors' code: frontend, names, every tap, counts."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.errors import ConfigError
from pipeline.frontends.log_mel import LogMel
from pipeline.students import students
from pipeline.students.harmonic_cnn import HarmonicCnn
from pipeline.students.options import check_frontend
from pipeline.students.short_chunk_cnn import CHANNELS, Features, ShortChunkCnnRes, TaggingStudent
from tests.golden import convolutional_teachers as convnets
from tests.golden import golden_vectors as golden
from tests.golden.convolutional_teachers import Golden

NAMES = golden.folders("shortchunk_cnn_res", "harmonic_cnn")


@dataclass(frozen=True)
class Case:
    """One golden folder: its vectors, our frontend and, on it, our network with the spec's classes, filled."""

    folder: str
    vectors: Golden
    frontend: LogMelConfig
    network: TaggingStudent

    @property
    def spectrogram(self) -> Tensor:
        log_mel: Tensor = LogMel(self.frontend)(convnets.waveforms(self.vectors[0]))
        return log_mel[:, None]


def frontend_of(spec: dict[str, Any]) -> LogMelConfig:
    """Return the spec's frontend as ours; its sentence on the logarithm names the floor."""
    given = spec["frontend"]
    floor = re.search(r"max\(x, ([\d.e-]+)\)", given["log"])
    assert floor is not None and given["log"].startswith("AmplitudeToDB")
    bands: dict[str, Any] = {"bands": "linear"}
    if "n_mels" in given:
        bands = {
            "mels": given["n_mels"],
            "min_hz": given["fmin"],
            "max_hz": given["fmax"],
            "mel_scale": given["mel_scale"],
            "mel_norm": given["mel_norm"] or "none",
        }
    return LogMelConfig(
        sample_rate_hz=given["sample_rate"], n_fft=given["n_fft"], window_length=given["win_length"],
        hop_length=given["hop"], center=given["center"], pad_mode=given["pad_mode"], power=given["power"],
        log="db", log_offset=0.0, log_floor=float(floor[1]), **bands,
    )  # fmt: skip


def build(folder: str, spec: dict[str, Any], classes: int, features: Features = "dense") -> TaggingStudent:
    if folder == "shortchunk_cnn_res":
        return ShortChunkCnnRes(num_classes=classes, features=features)
    given = spec["frontend"]
    return HarmonicCnn(
        given["n_fft"] // 2 + 1, sample_rate_hz=given["sample_rate"], harmonics=given["n_harmonic"],
        steps_a_semitone=given["semitone_scale"], num_classes=classes, features=features,
    )  # fmt: skip


def constants(name: str) -> bool:
    return name.startswith(TaggingStudent.published_constants)


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    folder = str(request.param)
    spec, taps = golden.require(folder)
    network = build(folder, spec, spec["config"]["n_class"]).eval()
    state = {name: v for name, v in golden.filled_state(spec, taps).items() if not constants(name)}
    problems = network.load_state_dict(state, strict=False)
    assert problems.unexpected_keys == []
    assert all(name.endswith("num_batches_tracked") for name in problems.missing_keys)
    return Case(folder, (spec, taps), frontend_of(spec), network)


@pytest.fixture(scope="module")
def computed(case: Case) -> dict[str, Tensor]:
    """Every tap, from the waveform."""
    modules = {f"layer{n}": f"layer{n}" for n in range(1, len(CHANNELS) + 1)} | {
        "dense1": "dense1",
        "bn": "bn",
    }
    modules |= {"embedding": "dropout"}
    if isinstance(case.network, HarmonicCnn):
        modules |= {"features": "hstft", "normalised": "hstft_bn"}
    else:
        modules["normalised"] = "spec_bn"
    spectrogram = case.spectrogram
    with convnets.recorded(case.network, modules) as found:
        logits = case.network(spectrogram)
    found |= {"logits": logits, "probabilities": logits.sigmoid(), "pooled": found["layer7"].amax(dim=(2, 3))}
    if isinstance(case.network, HarmonicCnn):
        found["filterbank"] = case.network.hstft.bank().detach()
    else:
        found["features"] = spectrogram[:, 0]
    return found


def test_state_dict_has_the_published_names_shapes_and_dtypes(case: Case) -> None:
    spec, _ = case.vectors
    published = convnets.of_spec(spec)
    ours = convnets.names_and_shapes(case.network.state_dict())
    assert ours == {name: value for name, value in published.items() if not constants(name)}
    # What the published file holds beside them is the frontend's.
    frontend = LogMel(case.frontend)
    held = {name: shape for name, (shape, _) in published.items() if constants(name)}
    known = {"window": list(frontend.window.shape), "fb": list(frontend.bank.shape)}
    assert held and all(shape == known[name.rpartition(".")[2]] for name, shape in held.items())


def test_every_tap_equals_the_reference(case: Case, computed: dict[str, Tensor]) -> None:
    spec, _ = case.vectors
    values = {tap: computed[tap] for tap in spec["taps"]}
    convnets.check(case.folder, case.vectors, values, convnets.through_the_frontend)
    if "filterbank" in values:
        convnets.check(case.folder, case.vectors, {"filterbank": values["filterbank"]}, convnets.rounding)


def test_from_a_stored_map_only_rounding_is_left(case: Case) -> None:
    spec, taps = case.vectors
    layers = [f"layer{n}" for n in range(1, len(CHANNELS) + 1)]
    start = next(
        n for n, tap in enumerate(layers) if tap in spec["taps"] and spec["taps"][tap]["slice"] is None
    )
    assert start < len(layers) - 1
    found = {layers[start]: torch.from_numpy(taps[layers[start]])}
    with torch.inference_mode():
        for before, after in itertools.pairwise(layers[start:]):
            found[after] = case.network.get_submodule(after)(found[before])
        found["logits"] = case.network.embedded(found[layers[-1]])
    values = {tap: value for tap, value in found.items() if tap in spec["taps"] and tap != layers[start]}
    convnets.check(case.folder, case.vectors, values, convnets.rounding)


def test_the_embedding_is_either_vector_that_the_spec_names(case: Case, computed: dict[str, Tensor]) -> None:
    spec, _ = case.vectors
    taps: dict[Features, str] = {"dense": "embedding", "pooled": "pooled"}
    for features, tap in taps.items():
        student = build(case.folder, spec, 0, features).eval()
        state = case.network.state_dict()
        student.load_state_dict({name: state[name] for name in student.state_dict()})
        with torch.inference_mode():
            embedding = student(case.spectrogram)
        convnets.check(case.folder, case.vectors, {tap: embedding}, convnets.through_the_frontend)
        assert student.embedding_dim == spec["published"]["embedding_dim"]
    assert not hasattr(student, "dense1")


def test_parameters_and_multiply_accumulates_are_the_measured_ones(case: Case) -> None:
    spec, _ = case.vectors
    published = spec["published"]
    assert sum(p.numel() for p in case.network.parameters()) == published["params_measured"]
    frames = case.frontend.frames(spec["config"]["input_samples"])
    with torch.device("meta"):
        network = build(case.folder, spec, spec["config"]["n_class"]).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, 1, case.frontend.mels, frames))
    if isinstance(network, HarmonicCnn):
        # The authors draw their triangles by a product of bins and slopes.
        elsewhere = network.hstft.bank().numel()
    else:
        # The mel bank is the frontend's here.
        elsewhere = LogMel(case.frontend).bank.numel() * frames
    assert counter.get_total_flops() // 2 + elsewhere == published["macs_measured"]


def test_the_harmonic_filters_want_the_published_frontend(case: Case) -> None:
    builder, config = students.get(case.folder), StudentConfig(name=case.folder)
    check_frontend(builder, config, case.frontend)
    if case.folder != "harmonic_cnn":
        check_frontend(builder, config, LogMelConfig())
        return
    with pytest.raises(ConfigError, match=r"embed.frontend.bands = 'linear'"):
        check_frontend(builder, config, LogMelConfig())
    with pytest.raises(ConfigError, match="sample_rate_hz"):
        check_frontend(builder, config, case.frontend.model_copy(update={"sample_rate_hz": 22_050}))
