"""The deploy form of MicroNet gives the trained network's embedding: in float64, at shapes it was not built for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pipeline.students.folded import Order, cheapest_groups, mel_conv, time_conv
from pipeline.students.micronet import DynamicShiftMax, MicroNet
from pipeline.students.micronet_deploy import DeployedShiftMax, deploy_form, shift_order
from pipeline.students.micronet_variants import M0, M1, M2, M3, MicroNetConfig

MEAN, STD = -8.25, 3.5
SHAPES = ((1, 7), (3, 64), (2, 101))


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    # A MicroNet turns float32's rounding into parts in a hundred of its output on noise.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _trained(config: MicroNetConfig, width: float, mels: int) -> MicroNet:
    """Return a network whose norms and coefficients are far from where training starts."""
    torch.manual_seed(0)
    student = MicroNet(config, width=width)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.momentum = 1.0
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    with torch.no_grad():
        student.train()(torch.randn(4, 1, mels, 65))
    return student.eval()


@pytest.mark.parametrize(
    ("config", "width", "mels"),
    [(M0, 1.0, 64), (M0, 0.5, 37), (M1, 1.0, 64), (M2, 0.5, 40), (M3, 1.0, 64)],
)
def test_the_embedding_is_the_trained_networks_at_other_lengths_and_batches(
    config: MicroNetConfig, width: float, mels: int
) -> None:
    student = _trained(config, width, mels)
    form = deploy_form(student, mels, MEAN, STD)
    for batch, frames in SHAPES:
        log_mel = torch.randn(batch, 1, mels, frames) * STD + MEAN
        with torch.no_grad():
            want = student((log_mel - MEAN) / STD)
            got = form(log_mel).float()
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6 * float(want.abs().max()))


def test_an_embedding_of_another_width_is_kept() -> None:
    torch.manual_seed(0)
    student = MicroNet(M0, width=0.5, embedding_dim=20).eval()
    log_mel = torch.randn(2, 1, 32, 40)
    with torch.no_grad():
        want, got = student(log_mel), deploy_form(student, 32, 0.0, 1.0)(log_mel).float()
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-7)


def test_no_layer_has_a_group_for_each_channel_but_the_depthwise() -> None:
    form = deploy_form(MicroNet(M0).eval(), 64, MEAN, STD)
    convs = [module for module in form.modules() if isinstance(module, nn.Conv2d)]
    widening = [c for c in convs if c.groups > 1 and c.in_channels != c.out_channels]
    assert all(c.in_channels // c.groups >= 8 for c in widening)
    # M0's first three blocks and its stem widen; in the trained network all of these have 1 to 3 channels a group.
    assert len(convs) == 24


@pytest.mark.parametrize(("stride", "fold"), [(1, 2), (2, 1), (2, 4)])
def test_a_folded_convolution_over_mels_is_the_plain_one(stride: int, fold: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, (5, 1), (stride, 1), (2, 0), groups=4)
    before = Order.of(torch.tensor([2, 0, 3, 1]), stride * fold if fold > 1 else 1)
    after = Order.of(torch.randperm(8), fold)
    assert plain.bias is not None
    folded = mel_conv(
        plain.weight.flatten(2), plain.bias, groups=4, stride=stride, before=before, after=after
    )
    x = torch.randn(2, 4, 16, 9)
    with torch.no_grad():
        want, got = _folded(plain(x), after), folded(_folded(x, before))
    assert torch.allclose(got, want, atol=1e-12)


def test_a_convolution_over_time_between_two_orders_is_the_plain_one() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 12, (1, 3), (1, 2), (0, 1), groups=3)
    before, after = Order.of(torch.randperm(6), 2), Order.of(torch.randperm(12), 2)
    assert plain.bias is not None
    folded = time_conv(plain.weight.flatten(2), plain.bias, groups=3, stride=2, before=before, after=after)
    x = torch.randn(2, 6, 8, 11)
    with torch.no_grad():
        want, got = _folded(plain(x), after), folded(_folded(x, before))
    assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("branches", [1, 2])
def test_shift_max_over_folded_channels_is_the_trained_one(branches: int) -> None:
    torch.manual_seed(0)
    trained = DynamicShiftMax(12, 4, 4, branches, (1.0, 0.5), (0.0, 0.5)).eval()
    order = shift_order(trained.index, 2)
    form = DeployedShiftMax(trained, order, blocks=3, quartered=False)
    assert len(form.runs) == 2
    x = torch.randn(3, 12, 6, 5)
    with torch.no_grad():
        want, got = _folded(trained(x), order), form(_folded(x, order))
    assert torch.allclose(got, want, atol=1e-12)


def test_groups_are_cut_only_where_all_weights_between_them_are_zero() -> None:
    mask = torch.block_diag(*[torch.ones(32, 32)] * 4).bool()
    assert cheapest_groups(mask, 1) in (1, 2, 4)
    mask[0, 127] = True
    assert cheapest_groups(mask, 1) == 1


def _folded(x: Tensor, order: Order) -> Tensor:
    """Return ``(batch, channels, mels, frames)`` as ``order`` has it, element by element of the definition."""
    batch, _, mels, frames = x.shape
    blocks = mels // order.fold
    out = torch.empty(batch, len(order), frames, blocks)
    for place, (mel, channel) in enumerate(zip(order.mel.tolist(), order.channel.tolist(), strict=True)):
        for block in range(blocks):
            out[:, place, :, block] = x[:, channel, block * order.fold + mel]
    return out
