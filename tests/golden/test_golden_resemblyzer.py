"""Resemblyzer against its authors' package with the real weights: level, mel, LSTM, partials, embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config import TeacherConfig
from pipeline.errors import WeightsError
from pipeline.frontends.resemblyzer_frontend import HOP_LENGTH, PARTIAL_FRAMES, partial_starts
from pipeline.teachers import fetching
from pipeline.teachers.registry import build_teacher
from pipeline.teachers.resemblyzer import ResemblyzerTeacher, VoiceEncoder
from tests.golden import convolutional_teachers as convnets
from tests.golden import golden_vectors as golden
from tests.golden.convolutional_teachers import Golden

# The taps of functions alone carry no float64 deviation; those that do are off by a few 1e-6 of their rms.
FUNCTIONS = 5e-5


@pytest.fixture(scope="module", params=golden.folders("resemblyzer"))
def vectors(request: pytest.FixtureRequest) -> Golden:
    return golden.require(request.param)


@pytest.fixture(scope="module")
def teacher(vectors: Golden) -> ResemblyzerTeacher:
    try:
        fetching.fetch("resemblyzer")
        loaded = build_teacher(TeacherConfig(name="resemblyzer", batch_size=4))
    except WeightsError as error:
        pytest.skip(f"Resemblyzer's wheel neither cached nor downloadable: {error}")
    assert isinstance(loaded, ResemblyzerTeacher)
    return loaded


def allowed(about: dict[str, Any]) -> float:
    return max(FUNCTIONS, convnets.rounding(about))


def test_state_dict_has_the_published_names_and_shapes(vectors: Golden) -> None:
    spec, _ = vectors
    assert convnets.names_and_shapes(VoiceEncoder().state_dict()) == convnets.of_spec(spec)
    parameters = sum(p.numel() for p in VoiceEncoder().parameters())
    # The published count has the loss's two parameters too.
    assert parameters in (spec["published"]["params_measured"], spec["published"]["params_measured"] - 2)


def test_the_weights_are_the_specs(vectors: Golden, teacher: ResemblyzerTeacher) -> None:
    assert teacher.weights_sha256 == vectors[0]["weights"]["sha256"]
    assert teacher.embedding_dim == vectors[0]["published"]["embedding_dim"]


def test_every_tap_equals_the_reference(
    vectors: Golden, teacher: ResemblyzerTeacher, record_property: Any
) -> None:
    spec, _ = vectors
    waveforms = convnets.waveforms(spec)
    raised = teacher.frontend.raised(waveforms)
    made = teacher.embed(waveforms, ("embedding", "frames"))
    with torch.inference_mode():
        mel = teacher.frontend.mel(raised)
        sequence, (hidden, _) = teacher.net.lstm(mel[:, :PARTIAL_FRAMES])
        values = {
            "volume": raised,
            "mel": mel,
            "lstm_out": sequence,
            "hidden": hidden,
            "forward": teacher.net(mel[:, :PARTIAL_FRAMES]),
            "partials": made["frames"].flatten(0, 1),
            "embedding": made["embedding"],
            "short_embedding": teacher.embed(convnets.waveforms(spec, "short"))["embedding"][0],
        }
    assert sorted(values) == sorted(spec["taps"])
    record_property("worst_deviation", convnets.check("resemblyzer", vectors, values, allowed))


def test_partials_are_the_references(vectors: Golden) -> None:
    spec, _ = vectors
    given = spec["input"]
    samples = round(given["waveform"]["seconds"] * given["waveform"]["sample_rate"])
    ours = [[s * HOP_LENGTH, (s + PARTIAL_FRAMES) * HOP_LENGTH] for s in partial_starts(samples)]
    assert [ours] * len(given["waveform"]["seeds"]) == given["partial_ranges_samples"]


def test_a_window_of_the_authors_length_is_one_partial(teacher: ResemblyzerTeacher) -> None:
    clip = torch.randn(1, teacher.window_samples, generator=torch.Generator().manual_seed(0))
    assert teacher.embed(clip, ("frames",))["frames"].shape == (1, 1, 256)
    assert teacher.embed(torch.zeros(1, 7))["embedding"].isfinite().all()
