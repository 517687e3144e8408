"""torch's counter, fixed, against formulas worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.measure.complexity import count_macs, parameter_count

LENGTH, WIDTH, HEADS = 50, 64, 4


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "outputs"), [(3, 2, 1, 24), (3, 1, 16, 16), (1, 1, 4, 32), (5, 3, 2, 10)]
)
def test_convolution_is_outputs_times_inputs_per_group_times_kernel(
    kernel: int, stride: int, groups: int, outputs: int
) -> None:
    conv = nn.Conv2d(16, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups)
    rows = (20 + 2 * (kernel // 2) - kernel) // stride + 1
    columns = (31 + 2 * (kernel // 2) - kernel) // stride + 1
    expected = outputs * rows * columns * (16 // groups) * kernel * kernel
    assert count_macs(conv, torch.zeros(1, 16, 20, 31)) == expected


def test_linear_is_rows_times_inputs_times_outputs() -> None:
    assert count_macs(nn.Linear(WIDTH, 128), torch.zeros(1, LENGTH, WIDTH)) == LENGTH * WIDTH * 128


def test_normalisation_and_activation_count_nothing() -> None:
    block = nn.Sequential(nn.BatchNorm2d(8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)).eval()
    assert count_macs(block, torch.zeros(1, 8, 9, 9)) == 0


def test_attention_counts_its_four_projections_and_both_products() -> None:
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    x = torch.randn(1, LENGTH, WIDTH)
    expected = 4 * LENGTH * WIDTH * WIDTH + 2 * LENGTH * LENGTH * WIDTH
    assert count_macs(lambda t: attention(t, t, t), x) == expected
    assert count_macs(lambda t: attention(t, t, t, need_weights=False), x) == expected


def test_scaled_dot_product_attention_counts_both_products() -> None:
    x = torch.randn(1, HEADS, LENGTH, WIDTH // HEADS)
    assert count_macs(lambda t: F.scaled_dot_product_attention(t, t, t), x) == 2 * LENGTH * LENGTH * WIDTH


def test_attention_fast_path_is_restored() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    count_macs(nn.Linear(2, 2), torch.zeros(1, 2))
    assert torch.backends.mha.get_fastpath_enabled() is before


def test_parameters_leave_buffers_out() -> None:
    block = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    assert parameter_count(block) == 3 * 5 * 9 + 5 + 2 * 5
