"""M2D against its authors' portable runtime and S-SONDO's wrapper: every tap, flat features, slices."""

from __future__ import annotations

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
    flat = teacher_of(network, vectors, long_clips="chunks", flat_features=True)
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
            values["embedding_flat"] = flat.embed(waveforms)["embedding"]
        if "ssondo_embedding" in taps:
            values["ssondo_embedding"] = ssondo.embed(waveforms)["embedding"]
        for tap in taps:
            vits.check(values[tap], vectors, f"{case}.{tap}", request)


def test_both_long_clip_rules_agree_up_to_ten_seconds(vectors: Golden, network: M2d) -> None:
    case, waveforms = next((c, w) for c, w in vits.cases(vectors[0]).items() if len(w) == 2)
    vits.check(teacher_of(network, vectors).embed(waveforms)["embedding"], vectors, f"{case}.embedding")


def test_sensitivities_are_the_specs(vectors: Golden, network: M2d) -> None:
    spec, taps = vectors
    case, waveforms = next((c, w) for c, w in vits.cases(spec).items() if len(w) == 2)
    want, known = torch.from_numpy(taps[f"{case}.embedding"]), spec["sensitivity"]
    clips = vits.relative_change(want[:1], want[1:])
    assert clips == pytest.approx(known["embedding_rel_change_between_the_two_clips"], rel=0.2)
    teacher = teacher_of(network, vectors)
    for entry, change in (
        (network.pos_embed, "embedding_rel_change_position_zeroed"),
        (network.cls_token, "embedding_rel_change_cls_token_zeroed"),
    ):
        kept = entry.data
        entry.data = torch.zeros_like(kept)
        moved = teacher.embed(waveforms)["embedding"]
        entry.data = kept
        assert vits.relative_change(moved, want) == pytest.approx(known[change], rel=0.2)
        assert (moved - want).abs().max() > spec["taps"][f"{case}.embedding"]["suggested_atol"]
