"""M2D: published layouts through the real loader; chunks, slices and head against literal formulas."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.teachers.m2d import Architecture, M2d, M2dOptions, M2dTeacher, unwrap_m2d
from pipeline.teachers.registry import build_teacher
from tests.teachers.checkpoint_table import saved
from tests.teachers.vit_checkpoints import (
    SMALL,
    assert_holds,
    noise,
    random_state,
    shallow_state,
    trusted,
    written,
)  # fmt: skip

RATE = 16_000
FOLDER = "m2d_vit_base-80x608p16x16-221006-mr7_enconly"
WIDE = Architecture(80, 608, 16, 16)


def small_network(architecture: Architecture = WIDE, head: tuple[int, int] = (0, 0)) -> M2d:
    network = M2d(SMALL, architecture, head)
    state = random_state(network) | {"norm_stats": torch.tensor([-7.1, 4.2])}
    network.load_state_dict(state)
    return network.eval()


def teacher_of(network: M2d, architecture: Architecture = WIDE, **options: object) -> M2dTeacher:
    config = TeacherConfig(name="m2d", dtype="float32", batch_size=3)
    own = M2dOptions.model_validate(options)
    return M2dTeacher(config, network, architecture, own, "0" * 64, licence="-", citation="-")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return shallow_state("m2d_80x608")


def in_layout(state: dict[str, Tensor], layout: str) -> object:
    """Return what a published file of that layout holds around the encoder's state."""
    if layout == "full":
        others = {"decoder_blocks.0.norm1.weight": torch.ones(8), "mask_token": torch.ones(1, 1, 8),
                  "predictor.0.weight": torch.ones(8, 8), "target_blocks.0.norm1.weight": torch.ones(8)}  # fmt: skip
        arguments = argparse.Namespace(model="m2d_vit_base", input_size=[80, 608])
        stats = {"norm_stats": torch.tensor([-6.5, 4.5])}
        return {"model": state | others | stats, "optimizer": {"state": {}}, "epoch": 300, "args": arguments}
    if layout == "runtime":
        return {f"backbone.{name}": value for name, value in state.items()}
    if layout == "fine_tuned":
        head = {"module.head.norm.running_mean": torch.full((768,), 0.1),
                "module.head.norm.running_var": torch.full((768,), 2.0),
                "module.head.norm.num_batches_tracked": torch.tensor(7),
                "module.head.mlp.mlp.0.weight": torch.ones(527, 768) / 768,
                "module.head.mlp.mlp.0.bias": torch.zeros(527)}  # fmt: skip
        return {f"module.ar.runtime.backbone.{name}": value for name, value in state.items()} | head
    return state


@pytest.mark.parametrize("layout", ["flat", "full", "runtime", "fine_tuned"])
def test_published_layouts(layout: str, published: dict[str, Tensor], tmp_path: Path) -> None:
    config = written(in_layout(published, layout), tmp_path / FOLDER / "checkpoint-300.pth", "m2d_80x608")
    for _ in range(2):
        teacher = build_teacher(config, cache=tmp_path / "cache")
        assert isinstance(teacher, M2dTeacher)
        assert_holds(teacher.network, published)
        stats = [-6.5, 4.5] if layout == "full" else [-7.1, 4.2]
        assert teacher.network.norm_stats.tolist() == pytest.approx(stats)
        assert ("logits" in teacher.outputs) == (layout == "fine_tuned")
        assert teacher.embedding_dim == 3_840


def test_the_published_zip_is_loaded_as_it_is(published: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"{FOLDER}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(f"{FOLDER}/checkpoint-300.pth", saved(published))
    teacher = build_teacher(trusted(path, "m2d_80x608"), cache=tmp_path / "cache")
    assert isinstance(teacher, M2dTeacher)
    assert_holds(teacher.network, published)


def test_the_architecture_is_in_the_folders_name(tmp_path: Path) -> None:
    architecture = Architecture(80, 200, 16, 16)
    state = random_state(small_network(architecture))
    folder = tmp_path / "m2d_vit_base-80x200p16x16-x"
    teacher = build_teacher(written(state, folder / "model.pth", "m2d"), cache=tmp_path / "a")
    assert isinstance(teacher, M2dTeacher)
    assert teacher.network.chunk_frames == 200
    unnamed = written(state, tmp_path / "plain" / "model.pth", "m2d")
    with pytest.raises(ConfigError, match="said nowhere"):
        build_teacher(unnamed, cache=tmp_path / "b")
    named = unnamed.model_copy(update={"options": {"architecture": "80x200p16x16p32k"}})
    assert build_teacher(named, cache=tmp_path / "b").sample_rate_hz == 32_000
    for name, config in (("m2d_80x608", unnamed), ("m2d_80x200", unnamed)):
        with pytest.raises(WeightsError, match="another M2D architecture"):
            build_teacher(config.model_copy(update={"name": name}), cache=tmp_path / "b")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    state = random_state(small_network())
    missing = {name: value for name, value in state.items() if name != "blocks.1.attn.proj.bias"}
    for payload in (missing, {"state_dict": state}, {"model": {"model": state}}, [1, 2]):
        config = written(payload, tmp_path / FOLDER / "checkpoint-300.pth", "m2d_80x608")
        with pytest.raises(WeightsError, match="M2D"):
            build_teacher(config, cache=tmp_path / "cache")


def test_what_is_not_the_encoders_is_left_out() -> None:
    state = {"cls_token": torch.ones(1), "head.weight": torch.ones(1), "norm.weight": torch.ones(1),
             "norm_pix.weight": torch.ones(1), "decoder_norm.weight": torch.ones(1)}  # fmt: skip
    kept, _ = unwrap_m2d({"model": state})
    assert set(kept) == {"cls_token", "norm.weight"}


def literal(network: M2d, log_mel: Tensor, patch_frames: int = 16) -> tuple[Tensor, list[Tensor]]:
    """Return (time, bands, dim) patches of one clip chunk by chunk, and every layer's, as the authors' loop."""
    x = (log_mel + 7.1) / 4.2
    unit = network.chunk_frames
    x = torch.nn.functional.pad(x, (0, (-(x.shape[-1] % unit)) % patch_frames))
    layers: list[list[Tensor]] = [[] for _ in network.blocks]
    outputs = []
    for start in range(0, unit * -(-log_mel.shape[-1] // unit), unit):
        y = network.patch_embed.proj(x[None, None, :, start : start + unit])[0]
        bands, columns = y.shape[1:]
        table = network.pos_embed[0, 1:].reshape(bands, -1, SMALL.dim)[:, :columns]
        tokens = y.flatten(1).T + table.reshape(-1, SMALL.dim)
        y = torch.cat([network.cls_token[0] + network.pos_embed[0, :1], tokens])[None]
        for number, block in enumerate(network.blocks):
            y = block(y)
            layers[number].append(y[0, 1:].reshape(bands, columns, -1).transpose(0, 1))
        outputs.append(network.norm(y)[0, 1:].reshape(bands, columns, -1).transpose(0, 1))
    layers[-1] = outputs
    return torch.cat(outputs), [torch.cat(layer) for layer in layers]


@torch.no_grad()
@pytest.mark.parametrize("frames", [100, 608, 609, 1_216, 1_300])
def test_chunks_are_the_authors_loop(frames: int) -> None:
    network = small_network()
    teacher, flat = (teacher_of(network, long_clips="chunks", flat_features=f) for f in (False, True))
    clips = noise(2, (frames - 1) * 160)
    made = teacher.embed(clips, ("embedding", "frames", "layer.0", "layer.1"))
    patches, layers = literal(network, teacher.frontend(clips)[1])
    torch.testing.assert_close(made["frames"][1], patches.flatten(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made["embedding"][1], patches.flatten(1).mean(dim=0), rtol=1e-4, atol=1e-5)
    for number, layer in enumerate(layers):
        want = layer.flatten(1).mean(dim=0)
        torch.testing.assert_close(made[f"layer.{number}"][1], want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        flat.embed(clips)["embedding"][1], patches.mean(dim=(0, 1)), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("frames", [200, 1_000, 1_001, 1_005])
def test_a_chunk_need_not_be_whole_patches(frames: int) -> None:
    architecture = Architecture(80, 1_001, 16, 16)
    network = small_network(architecture)
    teacher = teacher_of(network, architecture, long_clips="chunks")
    clips = noise(1, (frames - 1) * 160)
    patches, _ = literal(network, teacher.frontend(clips)[0])
    made = teacher.embed(clips, ("frames",))["frames"]
    torch.testing.assert_close(made[0], patches.flatten(1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_past_ten_seconds_slices_are_filled_with_silence_and_averaged() -> None:
    network = small_network()
    teacher = teacher_of(network)
    clips = noise(2, 12 * RATE)
    made = teacher.embed(clips, ("embedding", "frames", "layer.0"))
    slices = [clips[1, : 10 * RATE], torch.cat([clips[1, 10 * RATE :], torch.zeros(8 * RATE)])]
    each = [literal(network, teacher.frontend(one[None])[0]) for one in slices]
    mean = torch.stack([patches for patches, _ in each]).mean(dim=0).flatten(1).mean(dim=0)
    torch.testing.assert_close(made["embedding"][1], mean, rtol=1e-4, atol=1e-5)
    layer = torch.stack([layers[0] for _, layers in each]).mean(dim=0).flatten(1).mean(dim=0)
    torch.testing.assert_close(made["layer.0"][1], layer, rtol=1e-4, atol=1e-5)
    # 2 s of the second slice are 12.5 columns of 160 ms.
    want = torch.cat([each[0][0], each[1][0][:13]]).flatten(1)
    torch.testing.assert_close(made["frames"][1], want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("flat", [True, False])
def test_logits_of_a_fine_tuned_head(flat: bool) -> None:
    inputs = SMALL.dim * (1 if flat else 5)
    network = small_network(head=(inputs, 4))
    teacher = teacher_of(network)
    clips = noise(2, 3 * RATE)
    made = teacher.embed(clips, ("logits",))["logits"]
    patches, _ = literal(network, teacher.frontend(clips)[1])
    pooled = patches.mean(dim=(0, 1)) if flat else patches.flatten(1).mean(dim=0)
    norm, head = network.head_norm, network.head
    assert (
        norm is not None
        and head is not None
        and norm.running_mean is not None
        and norm.running_var is not None
    )
    normed = (pooled - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5)
    torch.testing.assert_close(made[1], head.weight @ normed + head.bias, rtol=1e-4, atol=1e-5)


def test_very_short_clips_are_followed_by_silence() -> None:
    teacher = teacher_of(small_network())
    clip = noise(1, 30)
    filled = torch.cat([clip, torch.zeros(1, teacher.frontend.least_samples - 30)], dim=1)
    torch.testing.assert_close(teacher.embed(clip)["embedding"], teacher.embed(filled)["embedding"])


def test_bfloat16_leaves_the_normalisation_exact() -> None:
    network = small_network()
    want = teacher_of(network).embed(noise(4, 3 * RATE))["embedding"]
    config = TeacherConfig(name="m2d", dtype="bfloat16")
    teacher = M2dTeacher(config, small_network(), WIDE, M2dOptions(), "0" * 64, licence="-", citation="-")
    assert teacher.network.norm_stats.dtype == torch.float32
    assert teacher.network.blocks[0].attn.qkv.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    got = teacher.embed(noise(4, 3 * RATE))["embedding"]
    assert torch.cosine_similarity(got, want).min() > 0.999
