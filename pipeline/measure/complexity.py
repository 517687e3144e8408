"""Parameters and multiply-accumulates (MACs; 1 MAC = 2 FLOPs) of a torch model, counted by torch itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters; buffers (running statistics, constants) are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(function: Callable[..., Any], *inputs: torch.Tensor) -> int:
    """Return the MACs of ``function(*inputs)``: convolutions and matrix products, attention's included.

    Element-wise arithmetic, normalisation, pooling and FFTs count 0, as in the papers that quote MACs.

    Args:
        function: a module in evaluation mode, or a call that runs one.
        inputs: tensors of one inference, e.g. ``(1, 1, mels, frames)``.
    """
    with _countable(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _countable() -> Iterator[None]:
    # Fused attention kernels hide their products from the counter, and inference mode hides convolutions.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
