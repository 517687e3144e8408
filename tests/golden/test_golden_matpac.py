"""MATPAC and MATPAC++ against their authors' package and S-SONDO's wrapper: every tap, precise and fast, head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.teachers.matpac import Matpac, MatpacOptions, MatpacTeacher
from pipeline.teachers.slices import cut_slices
from tests.golden import golden_vectors as golden
from tests.golden import spectrogram_vits as vits
from tests.golden.spectrogram_vits import Golden


@pytest.fixture(scope="module", params=golden.folders(prefix="matpac"))
def vectors(request: pytest.FixtureRequest) -> Golden:
    return golden.require(request.param)


@pytest.fixture(scope="module")
def network(vectors: Golden) -> Matpac:
    return Matpac.from_state(vits.state_of(vectors))


def teacher_of(network: Matpac, **options: object) -> MatpacTeacher:
    return MatpacTeacher(
        TeacherConfig(name="matpac", dtype="float32"), network, MatpacOptions.model_validate(options),
        "0" * 64, licence="-", citation="-",
    )  # fmt: skip


def test_state_dict_has_the_published_names_and_shapes(vectors: Golden, network: Matpac) -> None:
    vits.assert_names_and_shapes(network, vectors[0])


def test_sizes_are_read_from_the_state(vectors: Golden, network: Matpac) -> None:
    config = vectors[0]["config"]
    assert network.chunk_frames == config["n_t"]
    assert (network.head is not None) == config["as_class_head"]
    assert teacher_of(network).side_by_side == config["concat_freq"]


def test_every_tap_of_every_case(vectors: Golden, network: Matpac, request: pytest.FixtureRequest) -> None:
    spec, _ = vectors
    authors = teacher_of(network, inference=spec["config"]["inference_type"], long_clips="chunks")
    fast = teacher_of(network, inference="fast", long_clips="chunks")
    layers = [name for name in authors.outputs if name.startswith("layer.")]
    blocks = network.student_encoder.blocks
    for case, waveforms in vits.cases(spec).items():
        taps = vits.taps_of(vectors, case)
        values: dict[str, Tensor] = {}
        if "frames" in taps or "embedding" in taps:
            head = ("logits",) if network.head is not None else ()
            with vits.tapped(network, blocks, len(waveforms)) as found:
                made = authors.embed(waveforms, ("embedding", "frames", *head, *layers))
            values = {
                **found,
                **made,
                "logmel": network.log_mel.log_mel(waveforms),
                "layers": torch.stack([made[name] for name in layers], dim=1),
            }
        if "probs" in taps:
            values["probs"] = made["logits"].softmax(dim=-1)
        if "embedding_fast" in taps:
            values["embedding_fast"] = fast.embed(waveforms)["embedding"]
        if "ssondo_embedding" in taps:
            windows = cut_slices(waveforms, authors.window_samples)
            each = authors.embed(windows.flatten(0, 1))["embedding"]
            values["ssondo_embedding"] = each.reshape(*windows.shape[:2], -1)
        for tap in taps:
            vits.check(values[tap], vectors, f"{case}.{tap}", request)


def test_a_long_clip_is_the_mean_of_its_slices(vectors: Golden, network: Matpac) -> None:
    spec, taps = vectors
    long = [case for case in spec["input"]["waveform"]["cases"] if f"{case}.ssondo_embedding" in taps]
    for case in long:
        got = teacher_of(network).embed(vits.cases(spec)[case])["embedding"]
        tap = f"{case}.ssondo_embedding"
        difference = (got - torch.from_numpy(taps[tap]).mean(dim=1)).abs().max()
        assert difference <= spec["taps"][tap]["suggested_atol"]


def test_a_lost_table_would_be_noticed(vectors: Golden, network: Matpac) -> None:
    spec, taps = vectors
    case, waveforms = vits.smallest_case(spec)
    want, known = torch.from_numpy(taps[f"{case}.embedding"]), spec["sensitivity"]
    kept = network.pos_embed.data
    network.pos_embed.data = torch.zeros_like(kept)
    moved = teacher_of(network).embed(waveforms)["embedding"]
    network.pos_embed.data = kept
    assert vits.relative_change(moved, want) > known["embedding_rel_change_position_zeroed"] / 2
    assert (moved - want).abs().max() > spec["taps"][f"{case}.embedding"]["suggested_atol"]
