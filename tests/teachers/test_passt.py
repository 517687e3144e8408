"""PaSST: published layouts through the real loader; long, short and timestamped clips against literal formulas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.teachers.passt import Passt, PasstOptions, PasstTeacher
from pipeline.teachers.registry import build_teacher
from tests.teachers.vit_checkpoints import (
    SMALL,
    assert_holds,
    noise,
    random_state,
    shallow_state,
    written,
)  # fmt: skip

RATE = 32_000
CLASSES = 5


def small_network(stride: int = 10, bands: int = 12, columns: int = 99) -> Passt:
    network = Passt(SMALL, bands=bands, columns=columns, classes=CLASSES, stride=stride)
    network.load_state_dict(random_state(network))
    return network.eval()


def teacher_of(network: Passt, batch_size: int = 3, **options: object) -> PasstTeacher:
    config = TeacherConfig(name="passt_s", dtype="float32", batch_size=batch_size)
    own = PasstOptions.model_validate(options)
    return PasstTeacher(config, network, own, "0" * 64, licence="-", citation="-")


@pytest.fixture(scope="module")
def network() -> Passt:
    return small_network()


@pytest.mark.parametrize("layout", ["flat", "model", "hear_wrapper", "three_channels"])
def test_published_layouts(layout: str, tmp_path: Path) -> None:
    state = shallow_state("passt")
    payload: Mapping[str, object] = state
    if layout == "model":
        payload = {"model": state}
    elif layout == "hear_wrapper":
        payload = {f"net.{name}": value for name, value in state.items()} | {"device_proxy": torch.zeros(1)}
    elif layout == "three_channels":
        patch = state["patch_embed.proj.weight"]
        payload = state | {"patch_embed.proj.weight": torch.cat([patch, 2 * patch, -2 * patch], dim=1)}
    config = written(payload, tmp_path / "passt-s-f128-p16-s10-ap.476-swa.pt", "passt_s")
    for _ in range(2):
        teacher = build_teacher(config, cache=tmp_path / "cache")
        assert isinstance(teacher, PasstTeacher)
        if layout == "three_channels":
            patch = teacher.network.state_dict()["patch_embed.proj.weight"]
            torch.testing.assert_close(patch, state["patch_embed.proj.weight"], rtol=1e-5, atol=1e-6)
        else:
            assert_holds(teacher.network, state)
        assert teacher.embedding_dim == 768
        assert teacher.outputs == ("embedding", "logits", "frames", "layer.0")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    state = random_state(small_network())
    renamed = {name.replace("norm1", "ln1"): value for name, value in state.items()}
    for payload, said in (
        (renamed, "does not fit PaSST"),
        ({"weights": [1]}, "PaSST"),
        ({"a": torch.ones(1)}, "PaSST"),
    ):
        config = written(payload, tmp_path / "passt.pt", "passt_s")
        with pytest.raises(WeightsError, match=said):
            build_teacher(config, cache=tmp_path / "cache")
    config = written(state, tmp_path / "passt.pt", "passt_s")
    with pytest.raises(WeightsError, match="digest"):
        build_teacher(config.model_copy(update={"trust_sha256": None}), cache=tmp_path / "cache")


def test_stride_is_in_the_files_name(tmp_path: Path) -> None:
    state = random_state(small_network(stride=16, bands=8, columns=62))
    config = written(state, tmp_path / "passt-s-f128-p16-s16-ap.473-swa.pt", "passt_s")
    teacher = build_teacher(config, cache=tmp_path / "cache")
    assert isinstance(teacher, PasstTeacher)
    assert teacher.embed(noise(1, RATE), ("frames",))["frames"].shape == (1, (100 - 16) // 16 + 1, SMALL.dim)
    with pytest.raises(WeightsError, match="stride of 10"):
        build_teacher(config.model_copy(update={"options": {"stride": 10}}), cache=tmp_path / "cache")


def heard(network: Passt, teacher: PasstTeacher, window: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, logits and (columns, dim) patches of one window, the blocks unrolled."""
    x = network.tokens(teacher.frontend(torch.from_numpy(window)[None]))[0]
    for block in network.blocks:
        x = block(x)
    x = network.norm(x)[0]
    features = (x[0] + x[1]) / 2
    patches = x[2:].reshape(12, -1, SMALL.dim).mean(dim=0)
    return features, network.head(features), patches


def mirrored(clip: Tensor, size: int, hop: int) -> list[np.ndarray]:
    """Return the windows of a clip mirrored by half a window at both ends."""
    padded = np.pad(clip.numpy(), size // 2, mode="reflect")
    return [padded[start : start + size] for start in range(0, len(padded) - size + 1, hop)]


@torch.no_grad()
@pytest.mark.parametrize("seconds", [1.0, 1.01, 2.3])
def test_long_clips_are_heard_in_mirrored_windows(network: Passt, seconds: float) -> None:
    teacher = teacher_of(network, window_seconds=1.0, hop_seconds=0.5)
    clips = noise(2, round(seconds * RATE))
    made = teacher.embed(clips, ("embedding", "logits", "frames", "layer.1"))
    steps = ((clips.shape[1] - 2) // 320 + 1 - 16) // 10 + 1
    assert made["frames"].shape == (2, steps, SMALL.dim)
    for row, clip in enumerate(clips):
        windows = [clip.numpy()] if seconds <= 1.0 else mirrored(clip, RATE, RATE // 2)
        each = [heard(network, teacher, window) for window in windows]
        features = torch.stack([one[0] for one in each]).mean(dim=0)
        logits = torch.stack([one[1] for one in each]).mean(dim=0)
        torch.testing.assert_close(made["embedding"][row], features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made["logits"][row], logits, rtol=1e-4, atol=1e-5)
        for step in range(steps):
            if seconds <= 1.0:
                want = each[0][2][step]
            else:
                # Window i is centred at 50 i frames, its first column starts at 50 i - 50.
                near = min(range(len(each)), key=lambda i: abs(50 * i - (10 * step + 8)))
                want = each[near][2][min(step - 5 * near + 5, len(each[near][2]) - 1)]
            torch.testing.assert_close(made["frames"][row, step], want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_timestamps_are_160_ms_windows_each_50_ms(network: Passt) -> None:
    clips = noise(2, RATE // 2)
    for embedding in ("features", "logits_features"):
        teacher = teacher_of(network, frames="timestamps", embedding=embedding)
        frames = teacher.embed(clips, ("frames",))["frames"]
        windows = mirrored(clips[1], 5_120, 1_600)
        assert frames.shape == (2, len(windows), teacher.embedding_dim)
        for step, window in enumerate(windows):
            features, logits, _ = heard(network, teacher, window)
            want = features if embedding == "features" else torch.cat([logits, features])
            torch.testing.assert_close(frames[1, step], want, rtol=1e-4, atol=1e-5)


def test_logits_come_first_in_the_joint_embedding(network: Passt) -> None:
    made = teacher_of(network, embedding="logits_features").embed(noise(1, RATE), ("embedding", "logits"))
    assert made["embedding"].shape == (1, CLASSES + SMALL.dim)
    torch.testing.assert_close(made["embedding"][:, :CLASSES], made["logits"])


def test_a_clip_shorter_than_a_patch_is_followed_by_silence(network: Passt) -> None:
    teacher, clip = teacher_of(network), noise(2, 700)
    least = teacher.frontend.least_samples
    filled = torch.cat([clip, torch.zeros(2, least - 700)], dim=1)
    made = teacher.embed(clip, ("embedding", "frames"))
    assert made["frames"].shape == (2, 1, SMALL.dim)
    torch.testing.assert_close(made["embedding"], teacher.embed(filled)["embedding"])


def test_rows_do_not_depend_on_their_batch(network: Passt) -> None:
    clips = noise(5, RATE)
    together = teacher_of(network, batch_size=5).embed(clips, teacher_of(network).outputs)
    apart = teacher_of(network, batch_size=2).embed(clips, teacher_of(network).outputs)
    for name, value in together.items():
        torch.testing.assert_close(value, apart[name], rtol=1e-4, atol=1e-5)


def test_patchout_drops_columns_and_bands_in_training_only() -> None:
    network = small_network()
    network.s_patchout_t, network.s_patchout_f = 3, 4
    log_mel = torch.randn(2, 128, 100)
    assert network.tokens(log_mel)[0].shape[1] == 2 + 12 * 9
    network.train()
    tokens, bands = network.tokens(log_mel)
    assert (tokens.shape[1], bands) == (2 + 8 * 6, 8)
    assert network(log_mel).patches.shape[1] == 6


def test_impossible_options(network: Passt, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no positions"):
        teacher_of(network, window_seconds=12.0).embed(noise(1, 11 * RATE))
    config = written(random_state(network), tmp_path / "passt.pt", "passt_s", embeding="features")
    with pytest.raises(ConfigError, match="embeding") as refused:
        build_teacher(config, cache=tmp_path / "cache")
    assert "embedding" in str(refused.value)


def test_options_that_change_numbers_change_the_digest(network: Passt) -> None:
    digests = {teacher_of(network, **options).digest() for options in ({}, {"embedding": "logits_features"},
               {"frames": "timestamps"}, {"hop_seconds": 5.0})}  # fmt: skip
    assert len(digests) == 4


def test_bfloat16_keeps_the_direction(network: Passt) -> None:
    clips = noise(4, RATE)
    want = teacher_of(network).embed(clips)["embedding"]
    config = TeacherConfig(name="passt_s", dtype="bfloat16")
    teacher = PasstTeacher(config, small_network(), PasstOptions(), "0" * 64, licence="-", citation="-")
    assert torch.cosine_similarity(teacher.embed(clips)["embedding"], want).min() > 0.999
