"""PaSST against its authors' HEAR package: frontend, patches, blocks, logits, features, long clips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.teachers.passt import Passt, PasstOptions, PasstTeacher
from tests.golden import golden_vectors as golden
from tests.golden import spectrogram_vits as vits
from tests.golden.spectrogram_vits import Golden


@pytest.fixture(scope="module", params=golden.folders("passt"))
def vectors(request: pytest.FixtureRequest) -> Golden:
    return golden.require(request.param)


@pytest.fixture(scope="module")
def network(vectors: Golden) -> Passt:
    return Passt.from_state(vits.state_of(vectors), vectors[0]["config"]["fstride"])


def teacher_of(network: Passt, embedding: str) -> PasstTeacher:
    config = TeacherConfig(name="passt_s", dtype="float32")
    options = PasstOptions.model_validate({"embedding": embedding})
    return PasstTeacher(config, network, options, "0" * 64, licence="-", citation="-")


def test_state_dict_has_the_published_names_and_shapes(vectors: Golden, network: Passt) -> None:
    spec, _ = vectors
    vits.assert_names_and_shapes(network, spec)
    parameters = sum(p.numel() for p in network.parameters())
    assert round(parameters / 1e6, 3) == spec["published"]["params_millions_measured"]


def test_every_tap_of_every_case(vectors: Golden, network: Passt, request: pytest.FixtureRequest) -> None:
    teacher = teacher_of(network, "logits_features")
    classes = vectors[0]["config"]["n_classes"]
    for case, waveforms in vits.cases(vectors[0]).items():
        with vits.tapped(network, network.blocks, len(waveforms)) as found:
            made = teacher.embed(waveforms, ("embedding", "logits"))
        values: dict[str, Tensor] = {
            **found,
            "logmel": teacher.frontend(waveforms),
            "logits": made["logits"],
            "scene_embedding": made["embedding"],
            "embedding": made["embedding"][:, classes:],
        }
        for tap in vits.taps_of(vectors, case):
            vits.check(values[tap], vectors, f"{case}.{tap}", request)


def test_features_are_the_default_embedding(vectors: Golden, network: Passt) -> None:
    case, waveforms = vits.smallest_case(vectors[0])
    assert PasstOptions().embedding == "features"
    vits.check(teacher_of(network, "features").embed(waveforms)["embedding"], vectors, f"{case}.embedding")


def test_a_lost_table_would_be_noticed(vectors: Golden, network: Passt) -> None:
    spec, _ = vectors
    case, waveforms = vits.smallest_case(spec)
    want = torch.from_numpy(vectors[1][f"{case}.embedding"])
    known = spec["sensitivity"]
    teacher = teacher_of(network, "features")
    for entries, change in (
        (("time_new_pos_embed",), "embedding_rel_change_time_position_zeroed"),
        (("new_pos_embed",), "embedding_rel_change_token_position_zeroed"),
    ):
        kept = {name: network.get_parameter(name).data for name in entries}
        for name in entries:
            network.get_parameter(name).data = torch.zeros_like(kept[name])
        moved = teacher.embed(waveforms)["embedding"]
        for name, value in kept.items():
            network.get_parameter(name).data = value
        allowed = spec["taps"][f"{case}.embedding"]["suggested_atol"]
        assert vits.relative_change(moved, want) > known[change] / 2
        assert (moved - want).abs().max() > allowed
