"""aisfx against the authors' own code and weights: frontend, every block, embedding, heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import TeacherConfig
from pipeline.errors import WeightsError
from pipeline.frontends.aisfx_frontend import AisfxFrontend, block_count, essentia_mel_bank, frame_count
from pipeline.teachers import fetching, weights
from pipeline.teachers.aisfx import Aisfx, AisfxTeacher, unwrap
from tests.golden import golden_vectors as golden

# The spec carries no tolerance: float32 rounding against the largest value of each tap.
TOLERANCE = {"atol_relative_to_abs_max": 2e-5, "rtol": 1e-4}

Golden = tuple[dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=golden.folders("aisfx"))
def vectors(request: pytest.FixtureRequest) -> Golden:
    return golden.require(request.param)


@pytest.fixture(scope="module")
def state(vectors: Golden) -> dict[str, Tensor]:
    try:
        fetching.fetch("aisfx")
        return weights.load("aisfx", TeacherConfig(), unwrap).state
    except WeightsError as error:
        pytest.skip(f"aisfx wheel neither cached nor downloadable: {error}")


def clips(spec: dict[str, Any], which: str) -> Tensor:
    given = spec["input"][which]
    rows = [
        golden.waveform(seed, given["seconds"], given["sample_rate"], given["channels"]).mean(axis=0)
        for seed in given["seeds"]
    ]
    return torch.from_numpy(np.stack(rows))


def sliced(value: Tensor, spec: dict[str, Any], tap: str) -> Tensor:
    """Apply the spec's slice, written as in numpy: "[:, ::2, ::2]"."""
    entry = spec["taps"][tap]
    assert list(value.shape) == entry["full_shape"], tap
    if entry["slice"] is None:
        return value
    steps = [part.strip() for part in entry["slice"].strip("[]").split(",")]
    return value[tuple(slice(*[int(n) if n else None for n in step.split(":")]) for step in steps)]


def check(value: Tensor, vectors: Golden, tap: str) -> None:
    spec, taps = vectors
    golden.assert_close(sliced(value, spec, tap), taps[tap], TOLERANCE, tap)


def network_blocks(vectors: Golden) -> Tensor:
    return AisfxFrontend()(clips(vectors[0], "waveform")).flatten(0, 1)


def test_frontend_log_mel(vectors: Golden) -> None:
    check(AisfxFrontend().log_mel(clips(vectors[0], "waveform")), vectors, "logmel")


def test_frontend_blocks(vectors: Golden) -> None:
    spec, _ = vectors
    waveform = clips(spec, "waveform")
    check(network_blocks(vectors), vectors, "blocks")
    frames = frame_count(waveform.shape[1])
    assert frames == spec["taps"]["logmel"]["full_shape"][1]
    assert [block_count(frames)] * len(waveform) == spec["input"]["blocks_per_clip"]


def test_short_clip_is_followed_by_zero_frames(vectors: Golden) -> None:
    check(AisfxFrontend()(clips(vectors[0], "short")).flatten(0, 1), vectors, "short_block")


def test_state_dict_has_the_published_names_and_shapes(vectors: Golden) -> None:
    spec, _ = vectors
    classes = [count for _, count in sorted(spec["weights"]["heads"].values())]
    network = Aisfx(tuple(classes))
    ours = {
        name: (list(v.shape), str(v.dtype).removeprefix("torch.")) for name, v in network.state_dict().items()
    }
    assert ours == {entry["name"]: (entry["shape"], entry["dtype"]) for entry in spec["state"]}
    assert sum(p.numel() for p in network.parameters()) == spec["published"]["params_measured"]
    assert (
        sum(p.numel() for p in network.embedding_net.parameters())
        == spec["published"]["params_embedding_net"]
    )


def test_checkpoint_table_names_the_reference_files(vectors: Golden) -> None:
    spec, _ = vectors
    known = weights.CHECKPOINTS["aisfx"]
    assert known.archive_sha256 == spec["source"]["wheel_sha256"]
    assert known.sha256 == spec["weights"]["sha256"]
    assert known.member == spec["weights"]["member"]


def test_every_block(vectors: Golden, state: dict[str, Tensor]) -> None:
    network = Aisfx.from_state(state)
    outputs: dict[str, Tensor] = {}

    def keep(tap: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[tap] = output.clone()

        return hook

    taps = [f"block{i}" for i in range(1, 5)]
    for tap in taps:
        getattr(network.embedding_net, f"conv_{tap}").register_forward_hook(keep(tap))
    with torch.inference_mode():
        embedding, _ = network(network_blocks(vectors))
    for tap in taps:
        check(outputs[tap], vectors, tap)
    check(embedding, vectors, "embedding")


def test_heads(vectors: Golden, state: dict[str, Tensor]) -> None:
    spec, _ = vectors
    network = Aisfx.from_state(state, heads=True)
    with torch.inference_mode():
        _, logits = network(network_blocks(vectors))
    for head, (index, classes) in spec["weights"]["heads"].items():
        assert logits[index].shape[1] == classes
        check(logits[index], vectors, f"logits_{head}")


def test_teacher_embeds_short_and_long_clips(vectors: Golden, state: dict[str, Tensor]) -> None:
    spec, taps = vectors
    teacher = AisfxTeacher(state, TeacherConfig(dtype="float32", batch_size=3))
    short = teacher.embed(clips(spec, "short"))["embedding"]
    golden.assert_close(short, taps["short_embedding"], TOLERANCE, "short_embedding")
    per_clip = np.split(taps["embedding"], np.cumsum(spec["input"]["blocks_per_clip"])[:-1])
    clip_vectors = np.stack([block.mean(axis=0) for block in per_clip])
    long = teacher.embed(clips(spec, "waveform"))["embedding"]
    golden.assert_close(long, clip_vectors, TOLERANCE, "clip vectors")


def test_bfloat16_keeps_the_direction(vectors: Golden, state: dict[str, Tensor]) -> None:
    spec, taps = vectors
    teacher = AisfxTeacher(state, TeacherConfig(dtype="bfloat16"))
    short = teacher.embed(clips(spec, "short"))["embedding"]
    cosine = torch.cosine_similarity(short, torch.from_numpy(taps["short_embedding"]))
    assert cosine.min() > 0.999


def test_mel_bank_rows_sum_to_one() -> None:
    np.testing.assert_allclose(essentia_mel_bank().sum(axis=1), 1.0, atol=1e-12)
