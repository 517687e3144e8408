"""M2D against its authors' portable runtime and S-SONDO's wrapper: every tap, flat features, slices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.teachers.m2d import Architecture, M2d, M2dOptions, M2dTeacher
from tests.golden import golden_vectors as golden
from tests.golden import spectrogram_vits as vits
from tests.golden.spectrogram_vits import Golden


@pytest.fixture(scope="module", params=golden.folders(prefix="m2d_"))
def vectors(request: pytest.FixtureRequest) -> Golden:
    return golden.require(request.param)


def architecture_of(vectors: Golden) -> Architecture:
    (mels, frames), (patch_mels, patch_frames) = (
        vectors[0]["config"][key] for key in ("input_size", "patch_size")
    )
    sample_rate = vectors[0]["frontend"]["sample_rate"]
    return Architecture(mels, frames, patch_mels, patch_frames, sample_rate)


@pytest.fixture(scope="module")
def network(vectors: Golden) -> M2d:
    return M2d.from_state(vits.state_of(vectors), architecture_of(vectors))


def teacher_of(network: M2d, vectors: Golden, **options: object) -> M2dTeacher:
    return M2dTeacher(
        TeacherConfig(name="m2d", dtype="float32"), network, architecture_of(vectors),
        M2dOptions.model_validate(options), "0" * 64, licence="-", citation="-",
    )  # fmt: skip


def test_state_dict_has_the_published_names_and_shapes(vectors: Golden, network: M2d) -> None:
    spec, _ = vectors
    vits.assert_names_and_shapes(network, spec)
    frontend = spec["frontend"]
    assert network.norm_stats.tolist() == pytest.approx([frontend["mean"], frontend["std"]])


def test_every_tap_of_every_case(vectors: Golden, network: M2d, request: pytest.FixtureRequest) -> None:
    authors = teacher_of(network, vectors, long_clips="chunks")
    ssondo = teacher_of(network, vectors)
    layers = [name for name in authors.outputs if name.startswith("layer.")]
    for case, waveforms in vits.cases(vectors[0]).items():
        taps = vits.taps_of(vectors, case)
        values: dict[str, Tensor] = {}
        if "frames" in taps or "embedding" in taps:
            with vits.tapped(network, network.blocks, len(waveforms)) as found:
                made = authors.embed(waveforms, ("embedding", "frames", *layers))
            values = {
                **found,
                "logmel": authors.frontend(waveforms)[:, None],
                "frames": made["frames"],
                "embedding": made["embedding"],
                "ssondo_layers": torch.stack([made[name] for name in layers], dim=1),
            }
        if "embedding_flat" in taps:
            # The mean over bands and time is the mean over the bands of the time mean: one pass gives both.
            bands = values["embedding"].unflatten(1, (network.bands, -1))
            values["embedding_flat"] = bands.mean(dim=1)
        if "ssondo_embedding" in taps:
            values["ssondo_embedding"] = ssondo.embed(waveforms)["embedding"]
        for tap in taps:
            vits.check(values[tap], vectors, f"{case}.{tap}", request)


def test_both_long_clip_rules_agree_up_to_ten_seconds(vectors: Golden, network: M2d) -> None:
    case, waveforms = vits.smallest_case(vectors[0])
    vits.check(teacher_of(network, vectors).embed(waveforms)["embedding"], vectors, f"{case}.embedding")


def test_flat_features(vectors: Golden, network: M2d) -> None:
    case, waveforms = vits.smallest_case(vectors[0])
    flat = teacher_of(network, vectors, flat_features=True)
    assert flat.embedding_dim == vectors[0]["config"]["embed_dim"]
    vits.check(flat.embed(waveforms)["embedding"], vectors, f"{case}.embedding_flat")


def test_a_lost_table_would_be_noticed(vectors: Golden, network: M2d) -> None:
    spec, taps = vectors
    case, waveforms = vits.smallest_case(spec)
    want, known = torch.from_numpy(taps[f"{case}.embedding"]), spec["sensitivity"]
    teacher = teacher_of(network, vectors)
    for entry, change in (
        (network.pos_embed, "embedding_rel_change_position_zeroed"),
        (network.cls_token, "embedding_rel_change_cls_token_zeroed"),
    ):
        kept = entry.data
        entry.data = torch.zeros_like(kept)
        moved = teacher.embed(waveforms)["embedding"]
        entry.data = kept
        assert vits.relative_change(moved, want) > known[change] / 2
        assert (moved - want).abs().max() > spec["taps"][f"{case}.embedding"]["suggested_atol"]


def test_bfloat16_keeps_the_direction(vectors: Golden, network: M2d) -> None:
    case, waveforms = vits.smallest_case(vectors[0])
    architecture = architecture_of(vectors)
    teacher = M2dTeacher(
        TeacherConfig(name="m2d", dtype="bfloat16"), copy.deepcopy(network), architecture, M2dOptions(),
        "0" * 64, licence="-", citation="-",
    )  # fmt: skip
    want = torch.from_numpy(vectors[1][f"{case}.embedding"])
    assert torch.cosine_similarity(teacher.embed(waveforms)["embedding"], want).min() > 0.999
