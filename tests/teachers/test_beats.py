"""BEATs from files laid out as published, windows of any length, and the mask against a literal attention."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.artifact import file_digest
from pipeline.checkpoints.table import CHECKPOINTS
from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.teachers import beats_attention, precision
from pipeline.teachers.beats import BeatsTeacher, unwrap_beats
from pipeline.teachers.beats_attention import position_buckets
from pipeline.teachers.beats_network import Beats, BeatsSizes, reduced_mask
from pipeline.teachers.position_convolution import PositionConvolution
from pipeline.teachers.registry import build_teacher, teachers

TINY: dict[str, Any] = {
    "input_patch_size": 16, "embed_dim": 24, "encoder_layers": 3, "encoder_embed_dim": 48, "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 3, "activation_fn": "gelu", "layer_norm_first": False, "deep_norm": True,
    "conv_pos": 16, "conv_pos_groups": 4, "relative_position_embedding": True, "num_buckets": 32, "max_distance": 64,
    "gru_rel_pos": True, "finetuned_model": False, "dropout": 0.1, "an_unknown_key": "ignored",
}  # fmt: skip
TUNED = TINY | {"finetuned_model": True, "predictor_class": 7}
SECOND = 16_000


def state_of(cfg: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Return a state dict of random values under the published names."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, value in Beats(BeatsSizes.from_cfg(cfg)).state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        made[name] = drawn / math.sqrt(value[0].numel()) if value.ndim > 1 else 0.1 * drawn + ("norm" in name)
    table = made["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    return {name: table if "relative_attention_bias" in name else value for name, value in made.items()}


def saved(folder: Path, payload: object, name: str = "beats_iter3_plus_as2m", **config: Any) -> TeacherConfig:
    path = folder / CHECKPOINTS[name].published_name
    torch.save(payload, path)
    return TeacherConfig(
        name=name, weights=path, trust_sha256=file_digest(path), **{"dtype": "float32", **config}
    )


def built(folder: Path, payload: object, name: str = "beats_iter3_plus_as2m", **config: Any) -> BeatsTeacher:
    teacher = build_teacher(saved(folder, payload, name, **config), cache=folder / "cache")
    assert isinstance(teacher, BeatsTeacher)
    return teacher


def literal(state: dict[str, Tensor], cfg: dict[str, Any], features: Tensor, padded: Tensor) -> Tensor:
    """Return the encoder's output by the formulas of the paper, one clip, one head and one query at a time."""
    sizes = BeatsSizes.from_cfg(cfg)
    get = {name: value.double() for name, value in state.items()}
    x = F.conv2d(features.double()[None, None], get["patch_embedding.weight"], stride=16)[0].flatten(1).T
    x = F.layer_norm(x, (sizes.embed_dim,), get["layer_norm.weight"], get["layer_norm.bias"])
    x = F.linear(x, get["post_extract_proj.weight"], get["post_extract_proj.bias"])
    x = x * ~padded[:, None]
    g, v = get["encoder.pos_conv.0.weight_g"], get["encoder.pos_conv.0.weight_v"]
    weight = g * v / torch.linalg.vector_norm(v, dim=(0, 1), keepdim=True)
    moved = F.conv1d(
        x.T[None], weight, get["encoder.pos_conv.0.bias"], padding=8, groups=sizes.conv_pos_groups
    )
    x = x + F.gelu(moved[0, :, :-1]).T
    x = F.layer_norm(x, x.shape[1:], get["encoder.layer_norm.weight"], get["encoder.layer_norm.bias"])
    alpha, heads = (2 * sizes.encoder_layers) ** 0.25, sizes.encoder_attention_heads
    table = get["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    for n in range(sizes.encoder_layers):
        part = {
            k.removeprefix(f"encoder.layers.{n}."): v
            for k, v in get.items()
            if k.startswith(f"encoder.layers.{n}.")
        }
        q, k, v = (
            F.linear(x, part[f"self_attn.{p}_proj.weight"], part[f"self_attn.{p}_proj.bias"]) for p in "qkv"
        )
        out = torch.zeros_like(x)
        width = x.shape[1] // heads
        for h in range(heads):
            at = slice(h * width, (h + 1) * width)
            for i in range(len(x)):
                gates = F.linear(
                    q[i, at], part["self_attn.grep_linear.weight"], part["self_attn.grep_linear.bias"]
                )
                a, b = gates.view(2, 4).sum(-1).sigmoid()
                gate = a * (b * part["self_attn.grep_a"][0, h, 0, 0] - 1) + 2
                bias = torch.stack([table[bucket(j - i, sizes), h] for j in range(len(x))])
                score = k[:, at] @ q[i, at] / math.sqrt(width) + gate * bias
                out[i, at] = score.masked_fill(padded, -math.inf).softmax(0) @ v[:, at]
        y = F.linear(out, part["self_attn.out_proj.weight"], part["self_attn.out_proj.bias"])
        x = norm(alpha * x + y, part, "self_attn_layer_norm")
        y = F.linear(
            F.gelu(F.linear(x, part["fc1.weight"], part["fc1.bias"])), part["fc2.weight"], part["fc2.bias"]
        )
        x = norm(alpha * x + y, part, "final_layer_norm")
    return x


def norm(x: Tensor, part: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[1:], part[f"{name}.weight"], part[f"{name}.bias"])


def bucket(distance: int, sizes: BeatsSizes) -> int:
    """T5's rule in plain Python."""
    half = sizes.num_buckets // 2
    exact = half // 2
    offset, far = (half if distance > 0 else 0), abs(distance)
    if far < exact:
        return offset + far
    steps = math.log(far / exact) / math.log(sizes.max_distance / exact) * (half - exact)
    return offset + min(half - 1, exact + int(steps))


def test_position_buckets_are_t5s() -> None:
    sizes = BeatsSizes.from_cfg(TINY)
    # Where the logarithm falls on a whole number, float32 and float64 may round to either side.
    distances = [d for d in range(-200, 201) if abs(d) not in (8, 16, 32, 64)]
    ours = position_buckets(torch.tensor(distances), sizes.num_buckets, sizes.max_distance)
    assert ours.tolist() == [bucket(d, sizes) for d in distances]


@pytest.mark.parametrize("apart", [True, False], ids=["head by head", "fused kernel"])
@pytest.mark.parametrize("whole", [True, False], ids=["all queries", "queries in blocks"])
def test_network_is_the_papers_formulas(monkeypatch: pytest.MonkeyPatch, apart: bool, whole: bool) -> None:
    monkeypatch.setattr(beats_attention, "heads_apart", lambda x: apart)
    if not whole:
        monkeypatch.setattr(beats_attention, "_HEAD_BYTES", 40 * 4 * 9)
        monkeypatch.setattr(beats_attention, "_CPU_BYTES", 3 * 40 * 4 * 9)
    state = state_of(TINY)
    network = Beats.from_state(state, BeatsSizes.from_cfg(TINY)).fold()
    features = torch.randn(2, 5 * 16 + 3, 128, generator=torch.Generator().manual_seed(1))
    padding = torch.arange(5 * 16 * 200) >= torch.tensor([[5 * 16 * 200], [9_000]])
    with torch.inference_mode():
        heard = network(features, padding=padding)
    assert heard.padding is not None and heard.padding[1].any() and not heard.padding[0].any()
    for row in range(2):
        want = literal(state, TINY, features[row], heard.padding[row])
        kept = ~heard.padding[row]
        torch.testing.assert_close(heard.tokens[row][kept].double(), want[kept], atol=2e-5, rtol=1e-4)


def test_padding_is_judged_by_equal_shares_as_the_authors_do() -> None:
    mask = torch.arange(4 * 16_000) >= 40_000
    frames = reduced_mask(mask[None], 398)[0].tolist()
    share = 64_000 // 398
    assert frames == [bool(mask[k * share : (k + 1) * share].all()) for k in range(398)]
    tokens = reduced_mask(torch.tensor([frames]), 192)[0].tolist()
    assert tokens == [all(frames[k * 2 : (k + 1) * 2]) for k in range(192)]


@pytest.mark.parametrize("tokens", [1, 7, 8, 15, 16, 17, 100])
def test_position_convolution_by_transforms_is_the_convolution(tokens: int) -> None:
    torch.manual_seed(tokens)
    ours = PositionConvolution(24, 16, 4)
    nn.init.normal_(ours.weight_v), nn.init.normal_(ours.weight_g), nn.init.normal_(ours.bias)
    reference = nn.Conv1d(24, 24, 16, padding=8, groups=4)
    reference.weight.data = torch._weight_norm(ours.weight_v.data, ours.weight_g.data, 2)
    reference.bias = ours.bias
    x = torch.randn(3, tokens, 24)
    want = reference(x.transpose(1, 2))[..., :tokens].transpose(1, 2)
    ours.fold(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(ours(x), want, atol=1e-5, rtol=1e-5)


def test_published_layouts_load_and_their_digest_counts(tmp_path: Path) -> None:
    state = state_of(TUNED)
    named = "beats_iter3_plus_as2m_finetuned_cpt2"
    payload = {"cfg": TUNED, "model": state, "label_dict": {0: "/m/09x0r", 1: "/m/05zppz"}}
    teacher = built(tmp_path, payload, named)
    assert (teacher.name, teacher.licence) == (named, "MIT")
    assert teacher.outputs == ("embedding", "logits", "frames", "layer.0", "layer.1", "layer.2")
    waves = 0.1 * torch.randn(2, SECOND, generator=torch.Generator().manual_seed(0))
    made = teacher.embed(waves, teacher.outputs)
    shapes = {name: tuple(value.shape) for name, value in made.items()}
    assert shapes == {
        "embedding": (2, 48), "logits": (2, 7), "frames": (2, 6, 48), **{f"layer.{n}": (2, 48) for n in range(3)},
    }  # fmt: skip
    head = F.linear(made["embedding"], state["predictor.weight"], state["predictor.bias"])
    torch.testing.assert_close(made["logits"], head)
    again = build_teacher(saved(tmp_path, payload, named), cache=tmp_path / "cache")
    assert torch.equal(again.embed(waves)["embedding"], made["embedding"])
    assert again.digest() == teacher.digest()
    assert (
        built(tmp_path, payload | {"cfg": TUNED | {"max_distance": 65}}, named).digest() != teacher.digest()
    )


def test_weight_norm_under_either_spelling_is_the_same_network(tmp_path: Path) -> None:
    state = state_of(TINY)
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    renamed = dict(state)
    for old, other in new.items():
        renamed[f"encoder.pos_conv.0.{other}"] = renamed.pop(f"encoder.pos_conv.0.{old}")
    waves = 0.1 * torch.randn(1, SECOND, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        built(tmp_path, {"cfg": TINY, "model": s}).embed(waves)["embedding"] for s in (state, renamed)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["model"], "expected: a dict of cfg and model"),
        (lambda p: {"model": p["model"]}, "expected: a dict of cfg and model"),
        (lambda p: p | {"cfg": TINY | {"layer_norm_first": True}}, "cfg.layer_norm_first"),
        (lambda p: p | {"cfg": TINY | {"encoder_layers": 10**9}}, "cfg.encoder_layers"),
        (lambda p: p | {"cfg": TINY | {"encoder_attention_heads": 5}}, "does not divide"),
        (lambda p: p | {"cfg": TINY | {"encoder_layers": 4}}, "missing encoder.layers.3"),
        (lambda p: p | {"cfg": TUNED}, "missing predictor.weight"),
        (lambda p: p | {"cfg": TINY | {"num_buckets": 64}}, "of another shape"),
    ],
    ids=["bare state", "no cfg", "pre-norm", "absurd depth", "heads", "layers", "no head", "buckets"],
)
def test_wrong_layouts_are_refused_in_words(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        built(tmp_path, change({"cfg": TINY, "model": state_of(TINY)}))


def test_position_tables_that_should_be_one_but_differ_are_refused() -> None:
    state = state_of(TINY)
    name = "encoder.layers.2.self_attn.relative_attention_bias.weight"
    with pytest.raises(WeightsError, match="copies of the shared relative_attention_bias differ"):
        Beats.from_state(state | {name: state[name] + 1}, BeatsSizes.from_cfg(TINY))


def test_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no option 'pooling'"):
        built(tmp_path, {"cfg": TINY, "model": state_of(TINY)}, options={"pooling": "max"})


def test_every_listed_checkpoint_has_its_builder() -> None:
    listed = [entry for entry in CHECKPOINTS.values() if "BEATs" in entry.citation]
    assert len(listed) >= 4
    for entry in listed:
        assert teachers.get(entry.teacher).__name__ == "build_beats"


def test_short_windows_are_followed_by_silence_and_long_ones_are_heard_whole(tmp_path: Path) -> None:
    teacher = built(tmp_path, {"cfg": TINY, "model": state_of(TINY)})
    waves = 0.1 * torch.randn(2, 2 * SECOND, generator=torch.Generator().manual_seed(0))
    for samples in (1, 399, 2_799):
        short = waves[:, :samples]
        padded = F.pad(short, (0, teacher.least_samples - samples))
        assert torch.equal(teacher.embed(short)["embedding"], teacher.embed(padded)["embedding"])
    long = waves.repeat(1, 8)
    made = teacher.embed(long, ("embedding", "frames"))
    assert made["frames"].shape == (2, (1 + (long.shape[1] - 400) // 160) // 16, 48)
    one_by_one = torch.cat([teacher.embed(row)["embedding"] for row in long.split(1)])
    torch.testing.assert_close(made["embedding"], one_by_one)


def test_bfloat16_agreement_is_measured(tmp_path: Path) -> None:
    payload = {"cfg": TINY, "model": state_of(TINY)}
    exact, short = (built(tmp_path, payload, dtype=dtype) for dtype in ("float32", "bfloat16"))
    waves = 0.1 * torch.randn(3, SECOND, generator=torch.Generator().manual_seed(0))
    found = precision.agreement(short, exact, waves)
    pairs = zip(short.embed(waves)["embedding"], exact.embed(waves)["embedding"], strict=True)
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in pairs]
    assert found["windows"] == 3
    assert found["smallest_cosine"] == pytest.approx(min(cosines), abs=1e-5)
    assert found["mean_cosine"] == pytest.approx(sum(cosines) / 3, abs=1e-5)
    assert precision.LEAST_COSINE <= found["smallest_cosine"] < 1.0
    assert precision.agreement(exact, exact, waves)["largest_difference"] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99999), ("bfloat16", 0.999)])
def test_gpu_gives_the_cpus_embeddings(tmp_path: Path, dtype: str, least: float) -> None:
    payload = {"cfg": TUNED, "model": state_of(TUNED)}
    waves = 0.1 * torch.randn(5, SECOND, generator=torch.Generator().manual_seed(0))
    cpu = built(tmp_path, payload)
    gpu = built(tmp_path, payload, device="cuda", dtype=dtype, batch_size=2)
    assert gpu.embed(waves)["embedding"].device.type == "cpu"
    assert precision.agreement(gpu, cpu, waves)["smallest_cosine"] >= least


def test_unwrap_keeps_what_json_can_hold() -> None:
    state, extra = unwrap_beats(
        {"cfg": TINY | {"odd": object()}, "model": {"a": torch.ones(1)}, "label_dict": {3: "/m/x"}}
    )
    assert extra == {"cfg": TINY, "label_dict": {"3": "/m/x"}}
    assert list(state) == ["a"]
