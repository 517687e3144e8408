"""Layers against slow literal formulas written here from the papers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.students.cnn4 import Cnn4
from pipeline.students.micronet import ChannelShuffle, DynamicShiftMax, MicroNet
from pipeline.students.micronet_variants import M0, M1, M2, M3, MicroNetConfig, scaled
from pipeline.students.mobilevitv2 import MobileVitBlock, MobileVitV2, SeparableSelfAttention


@pytest.mark.parametrize("groups", [(3,), (4, 6), (2, 12)])
def test_channel_shuffle_is_reshape_transpose_reshape(groups: tuple[int, ...]) -> None:
    x = torch.randn(2, 24, 3, 5)
    want = x
    for g in groups:
        want = want.reshape(2, g, 24 // g, 3, 5).transpose(1, 2).reshape(2, 24, 3, 5)
    assert torch.equal(ChannelShuffle(24, *groups)(x), want)


@pytest.mark.parametrize("branches", [1, 2])
def test_dynamic_shift_max_is_the_papers_formula(branches: int) -> None:
    torch.manual_seed(0)
    channels, groups = 12, 3
    init_a, init_b = (1.0, 0.5), (0.25, 0.75)
    layer = DynamicShiftMax(channels, groups, 4, branches, init_a, init_b)
    x = torch.randn(2, channels, 4, 5)
    with torch.no_grad():
        got = layer(x)
        first, second = layer.fc[0], layer.fc[2]
        hidden = (x.mean((2, 3)) @ first.weight.T + first.bias).clamp(min=0)
        squashed = ((hidden @ second.weight.T + second.bias) + 3).clamp(0, 6) / 6
        coefficients = 4 * squashed - 2
    size = channels // groups
    want = torch.empty_like(x)
    for b in range(2):
        for c in range(channels):
            group, place = divmod(c, size)
            partner = ((group + 1) % groups) * size + (place + 1) % size
            values = []
            for k in range(branches):
                a = coefficients[b, (2 * k) * channels + c] + init_a[k]
                shift = coefficients[b, (2 * k + 1) * channels + c] + init_b[k]
                values.append(a * x[b, c] + shift * x[b, partner])
            want[b, c] = torch.stack(values).amax(dim=0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_separable_attention_is_one_score_a_patch() -> None:
    torch.manual_seed(0)
    dim, pixels, patches = 6, 4, 5
    layer = SeparableSelfAttention(dim)
    x = torch.randn(2, dim, pixels, patches)
    want = torch.empty_like(x)
    with torch.no_grad():
        got = layer(x)
        weight, bias = layer.qkv_proj.weight[:, :, 0, 0], layer.qkv_proj.bias
        for b in range(2):
            for p in range(pixels):
                tokens = x[b, :, p].T @ weight.T + bias
                scores = torch.exp(tokens[:, 0]) / torch.exp(tokens[:, 0]).sum()
                context = (scores[:, None] * tokens[:, 1 : dim + 1]).sum(0)
                mixed = tokens[:, dim + 1 :].clamp(min=0) * context
                want[b, :, p] = (mixed @ layer.out_proj.weight[:, :, 0, 0].T + layer.out_proj.bias).T
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_cnn4_is_four_convolutions_written_out() -> None:
    torch.manual_seed(0)
    student = Cnn4().eval()
    state = {
        k: v + 0.1 * torch.rand_like(v) if v.is_floating_point() else v
        for k, v in student.state_dict().items()
    }
    student.load_state_dict(state)
    x = torch.randn(2, 1, 64, 115)
    y = x
    convolutions = sorted((k for k, v in state.items() if v.ndim == 4), key=lambda k: int(k.split(".")[1]))
    assert [tuple(state[k].shape[:2]) for k in convolutions] == [(16, 1), (32, 16), (64, 32), (128, 64)]
    for index, name in enumerate(convolutions):
        norm = f"features.{int(name.split('.')[1]) + 1}"
        y = F.conv2d(y, state[name], stride=2 if index == 0 else 1, padding=1)
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-5)
        shift = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        y = (y * scale[:, None, None] + shift[:, None, None]).clamp(min=0)
        if index < 3:
            y = F.pad(y, (0, y.shape[3] % 2, 0, y.shape[2] % 2), value=-torch.inf)
            y = torch.stack([y[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    assert y.shape == (2, 128, 4, 8)
    y = y.mean(2)
    with torch.no_grad():
        torch.testing.assert_close(
            student(x), torch.cat([y.mean(2), y.max(2).values], 1), rtol=1e-4, atol=1e-5
        )


def _pair(multiplier: float = 0.5) -> tuple[MobileVitV2, MobileVitV2]:
    torch.manual_seed(0)
    pad = MobileVitV2(multiplier, width=0.5, odd_size="pad").eval()
    resize = MobileVitV2(multiplier, width=0.5, odd_size="resize").eval()
    resize.load_state_dict(pad.state_dict())
    return pad, resize


def test_pad_and_resize_agree_where_every_map_is_even_and_differ_where_not() -> None:
    pad, resize = _pair()
    with torch.no_grad():
        even, odd = torch.randn(1, 1, 64, 128), torch.randn(1, 1, 64, 125)
        torch.testing.assert_close(pad(even), resize(even))
        # Width 125 becomes maps of 63, 32, 16, 8 and 4: only ceil(125 / 2) is odd, before any patch.
        torch.testing.assert_close(pad(odd), resize(odd))
        odd = torch.randn(1, 1, 64, 100)
        assert (pad(odd) - resize(odd)).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (4, 7), (5, 7), (1, 1)])
def test_padded_block_keeps_the_map_and_resized_block_makes_it_even(size: tuple[int, int]) -> None:
    x = torch.randn(2, 16, *size)
    assert MobileVitBlock(16, 1, "pad").eval()(x).shape == x.shape
    even = tuple(side + side % 2 for side in size)
    assert MobileVitBlock(16, 1, "resize").eval()(x).shape == (2, 16, *even)


def test_padded_block_is_the_even_block_on_zeros_then_cropped() -> None:
    torch.manual_seed(0)
    block = MobileVitBlock(16, 2, "pad").eval()
    x = torch.randn(2, 16, 5, 7)
    whole = torch.zeros(2, 16, 6, 8)
    whole[:, :, :5, :7] = x
    with torch.no_grad():
        torch.testing.assert_close(block(x), block(whole)[:, :, :5, :7])


@pytest.mark.parametrize("config", [M0, M1, M2, M3])
def test_micronet_groups_divide_their_channels_at_every_width(config: MicroNetConfig) -> None:
    for percent in range(5, 400, 5):
        net = scaled(config, percent / 100)
        channels = net.stem_groups[0] * net.stem_groups[1]
        for row, published in zip(net.rows, config.rows, strict=True):
            hidden = channels * row.expand_height * row.expand_width
            assert hidden % 4 == 0
            assert hidden % row.shift_groups == 0
            assert row.expand_groups == 0 or channels % row.expand_groups == 0
            assert (
                row.squeeze_groups == 0
                or hidden % row.squeeze_groups == row.channels % row.squeeze_groups == 0
            )
            assert row.output_groups == 0 or row.channels % row.output_groups == 0
            assert (row.expand_groups == 0) == (published.expand_groups == 0)
            assert (row.output_groups == 0) == (published.output_groups == 0)
            channels = row.channels


@pytest.mark.parametrize("config", [M0, M1, M2, M3])
def test_micronet_at_width_one_is_the_published_table(config: MicroNetConfig) -> None:
    assert scaled(config, 1.0) == config


def test_shift_index_moves_with_the_module_and_stays_out_of_the_state_dict() -> None:
    net = MicroNet(M0)
    assert not any(name.endswith((".index", ".order")) for name in net.state_dict())
    buffers: dict[str, Tensor] = dict(net.named_buffers())
    assert any(name.endswith(".index") for name in buffers)
    assert all(b.device.type == "meta" for b in net.to("meta").buffers())
