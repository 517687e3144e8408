"""MATPAC: published layouts through the real loader; precise, fast, slices and head against literal formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.teachers.matpac import Matpac, MatpacOptions, MatpacTeacher
from pipeline.teachers.registry import build_teacher
from tests.teachers.vit_checkpoints import (
    SMALL,
    assert_holds,
    noise,
    random_state,
    shallow_state,
    written,
)  # fmt: skip

RATE = 16_000


def small_network(chunk_frames: int = 608, classes: int = 0) -> Matpac:
    network = Matpac(SMALL, chunk_frames=chunk_frames, classes=classes)
    network.load_state_dict(random_state(network))
    return network.eval()


def teacher_of(network: Matpac, **options: object) -> MatpacTeacher:
    config = TeacherConfig(name="matpac", dtype="float32", batch_size=3)
    own = MatpacOptions.model_validate(options)
    return MatpacTeacher(config, network, own, "0" * 64, licence="-", citation="-")


def teacher_encoder() -> dict[str, Tensor]:
    """Return entries that a pre-training file holds besides the student encoder."""
    return {"teacher_encoder.blocks.0.norm1.weight": torch.ones(8), "predictor.weight": torch.ones(8, 8),
            "mask_token": torch.ones(1, 1, 8), "cls_head.last_layer.weight": torch.ones(4, 8)}  # fmt: skip


# Every name here would mislead a loader that reads the configuration from the letters of the path.
@pytest.mark.parametrize(
    ("folder", "name", "path", "with_head"),
    [
        ("matpac", "matpac", "matpac_10_2048.pt", False),
        ("matpac", "matpac_plus", "classes_head/last/matpac_plus_6s_2048_enconly.pt", False),
        ("matpac_as_head", "matpac_plus_as", "matpac_plus_as_48_1_map_enc_and_head.pt", True),
        ("matpac_as_head", "matpac_plus_as", "renamed.pt", True),
        ("matpac_as_head", "matpac_plus_as_encoder", "renamed.pt", False),
    ],
)
def test_published_layouts(folder: str, name: str, path: str, with_head: bool, tmp_path: Path) -> None:
    state = shallow_state(folder)
    if not with_head:
        state = {key: value for key, value in state.items() if not key.startswith("head")}
    config = written(state | teacher_encoder(), tmp_path / path, name)
    for _ in range(2):
        teacher = build_teacher(config, cache=tmp_path / "cache")
        assert isinstance(teacher, MatpacTeacher)
        assert_holds(teacher.network, state)
        assert teacher.network.chunk_frames == (992 if folder == "matpac_as_head" else 608)
        assert ("logits" in teacher.outputs) == with_head
        assert teacher.embedding_dim == (768 if with_head else 3_840)


def test_a_missing_or_renamed_entry_is_refused(tmp_path: Path) -> None:
    state = random_state(small_network())
    missing = {name: value for name, value in state.items() if name != "student_encoder.norm.weight"}
    renamed = {name.replace("student_encoder.", "encoder."): value for name, value in state.items()}
    table = state | {"pos_embed": torch.ones(1, 190, SMALL.dim)}
    for payload in (missing, renamed, table, {"state_dict": state}, [1]):
        config = written(payload, tmp_path / "matpac_10_2048.pt", "matpac")
        with pytest.raises(WeightsError, match="MATPAC"):
            build_teacher(config, cache=tmp_path / "cache")


def test_the_frontends_constants_are_the_files_own(tmp_path: Path) -> None:
    state = random_state(small_network())
    bank = "log_mel.MelSpectrogram.mel_scale.fb"
    without = {name: value for name, value in state.items() if not name.startswith("log_mel.")}
    clips = noise(1, RATE)
    made = {}
    for label, payload in (
        ("without", without),
        ("own", state),
        ("doubled", state | {bank: 2 * state[bank]}),
    ):
        config = written(payload, tmp_path / f"{label}.pt", "matpac")
        made[label] = build_teacher(config, cache=tmp_path / "cache").embed(clips)["embedding"]
    torch.testing.assert_close(made["without"], made["own"])
    assert (made["doubled"] - made["own"]).abs().max() > 1e-3


def literal(network: Matpac, clip: Tensor, fast: bool = False) -> Tensor:
    """Return (layers, time, bands, dim) of one clip chunk by chunk, the last layer normalised."""
    x = (network.log_mel.log_mel(clip[None])[0] + 7.056) / 4.193
    unit = network.chunk_frames
    chunks = -(-x.shape[-1] // unit)
    x = torch.nn.functional.pad(x, (0, chunks * unit - x.shape[-1] if fast else -x.shape[-1] % 16))
    outputs = []
    for start in range(0, chunks * unit, unit):
        y = network.patch_embed.proj(x[None, None, :, start : start + unit])[0]
        bands, columns = y.shape[1:]
        table = network.pos_embed[0, 1:].reshape(bands, -1, SMALL.dim)[:, :columns]
        tokens = y.flatten(1).T + table.reshape(-1, SMALL.dim)
        y = torch.cat([network.cls_token[0] + network.pos_embed[0, :1], tokens])[None]
        layers = []
        for block in network.student_encoder.blocks:
            y = block(y)
            layers.append(y)
        layers[-1] = network.student_encoder.norm(y)
        grid = torch.stack(layers)[:, 0, 1:].reshape(len(layers), bands, columns, SMALL.dim)
        outputs.append(grid.transpose(1, 2))
    return torch.cat(outputs, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("frames", [1, 100, 608, 700])
def test_precise_and_fast_are_the_authors_loops(fast: bool, frames: int) -> None:
    network = small_network()
    teacher = teacher_of(network, inference="fast" if fast else "precise")
    clips = noise(2, 400 + (frames - 1) * 160)
    made = teacher.embed(clips, ("embedding", "frames", "layer.0", "layer.1"))
    want = literal(network, clips[1], fast).flatten(2)
    torch.testing.assert_close(made["frames"][1], want[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made["embedding"][1], want[-1].mean(dim=0), rtol=1e-4, atol=1e-5)
    for number in range(2):
        mean = want[number].mean(dim=0)
        torch.testing.assert_close(made[f"layer.{number}"][1], mean, rtol=1e-4, atol=1e-5)


def test_precise_and_fast_differ_where_there_is_something_to_fill() -> None:
    network, clips = small_network(), noise(1, 2 * RATE)
    precise, fast = (
        teacher_of(network, inference=kind).embed(clips)["embedding"] for kind in ("precise", "fast")
    )
    assert (precise - fast).abs().max() > 1e-3


@torch.no_grad()
def test_past_ten_seconds_slices_are_averaged_or_left_out() -> None:
    network = small_network()
    clips = noise(2, 12 * RATE)
    parts = [clips[1, : 10 * RATE], torch.cat([clips[1, 10 * RATE :], torch.zeros(8 * RATE)])]
    each = [literal(network, part)[-1].flatten(1) for part in parts]
    made = teacher_of(network).embed(clips, ("embedding", "frames"))
    mean = torch.stack([part.mean(dim=0) for part in each]).mean(dim=0)
    torch.testing.assert_close(made["embedding"][1], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made["frames"][1], torch.cat([each[0], each[1][:13]]), rtol=1e-4, atol=1e-5)
    whole = teacher_of(network, long_clips="chunks").embed(clips, ("embedding", "frames"))
    want = literal(network, clips[1])[-1].flatten(1)
    torch.testing.assert_close(whole["frames"][1], want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole["embedding"][1], want.mean(dim=0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_head_sees_the_mean_patch_and_gives_logits() -> None:
    network = small_network(992, classes=6)
    teacher = teacher_of(network)
    clips = noise(2, 3 * RATE)
    made = teacher.embed(clips, ("embedding", "logits", "frames"))
    patches = literal(network, clips[0])[-1]
    mean = patches.mean(dim=(0, 1))
    torch.testing.assert_close(made["frames"][0], patches.mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made["embedding"][0], mean, rtol=1e-4, atol=1e-5)
    norm, head = network.head_norm, network.head
    assert (
        norm is not None
        and head is not None
        and norm.running_mean is not None
        and norm.running_var is not None
    )
    normed = (mean - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5)
    torch.testing.assert_close(made["logits"][0], head.weight @ normed + head.bias, rtol=1e-4, atol=1e-5)
    side_by_side = teacher_of(network, concat_freq=True).embed(clips, ("embedding", "logits"))
    assert side_by_side["embedding"].shape == (2, 5 * SMALL.dim)
    torch.testing.assert_close(side_by_side["logits"], made["logits"])


def test_options_and_digest(tmp_path: Path) -> None:
    network = small_network()
    config = written(random_state(network), tmp_path / "matpac_10_2048.pt", "matpac", inference="quick")
    with pytest.raises(ConfigError, match="inference"):
        build_teacher(config, cache=tmp_path / "cache")
    digests = {teacher_of(network, **options).digest() for options in
               ({}, {"inference": "fast"}, {"concat_freq": False}, {"long_clips": "chunks"})}  # fmt: skip
    assert len(digests) == 4
    assert teacher_of(network, concat_freq=True).digest() == teacher_of(network).digest()


def test_bfloat16_leaves_the_frontend_exact() -> None:
    clips, network = noise(4, 3 * RATE), small_network()
    constants = {name: value.clone() for name, value in network.log_mel.state_dict().items()}
    want = teacher_of(network).embed(clips)["embedding"]
    config = TeacherConfig(name="matpac", dtype="bfloat16")
    teacher = MatpacTeacher(config, network, MatpacOptions(), "0" * 64, licence="-", citation="-")
    for name, value in teacher.network.log_mel.state_dict().items():
        assert torch.equal(value, constants[name])
    assert network.student_encoder.norm.weight.dtype == torch.bfloat16
    assert torch.cosine_similarity(teacher.embed(clips)["embedding"], want).min() > 0.999
