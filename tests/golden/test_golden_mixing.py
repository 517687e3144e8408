"""Freq-MixStyle, mixup and device responses against the published code's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.audio.impulse import convolve
from pipeline.data.mixing import mixup, swap_frequency_statistics
from tests.golden.golden_vectors import folders, recipe, require, tensor, waveform

FOLDERS = folders("augment")


def close(got: Tensor | np.ndarray, want: np.ndarray, spec: dict[str, Any]) -> None:
    allowed = spec["tolerance"]
    np.testing.assert_allclose(np.asarray(got), want, rtol=allowed["rtol"], atol=allowed["atol"])


def offset(spec: dict[str, Any]) -> int:
    return int(spec.get("seed_offset", 0))


@pytest.mark.parametrize("folder", FOLDERS)
def test_freq_mixstyle_and_its_gradient(folder: str) -> None:
    spec, taps = require(folder)
    x = torch.from_numpy(taps["mixstyle.x"]).requires_grad_()
    partners, share = (
        torch.from_numpy(taps["mixstyle.permutation"]).long(),
        torch.from_numpy(taps["mixstyle.lambda"]),
    )
    out = swap_frequency_statistics(x, partners, share)
    close(out.detach(), taps["mixstyle.output"], spec)
    (out * tensor(503 + offset(spec), x.shape)).sum().backward()
    assert x.grad is not None
    close(x.grad, taps["mixstyle.grad"], spec)


@pytest.mark.parametrize("folder", FOLDERS)
def test_freq_mixstyle_of_three_channels_of_silence_and_of_one_clip(folder: str) -> None:
    spec, taps = require(folder)
    x = tensor(502 + offset(spec), (4, 3, 16, 20))
    partners, share = (
        torch.from_numpy(taps["mixstyle3.permutation"]).long(),
        torch.from_numpy(taps["mixstyle3.lambda"]),
    )
    close(swap_frequency_statistics(x, partners, share), taps["mixstyle3.output"], spec)
    silent = torch.cat([torch.full((1, 1, 16, 20), -11.5), -11.5 + x[1:, :1]]).requires_grad_()
    out = swap_frequency_statistics(silent, partners, share)
    close(out.detach(), taps["mixstyle_silence.output"], spec)
    out.sum().backward()
    assert silent.grad is not None
    close(silent.grad, taps["mixstyle_silence.grad"], spec)
    one = torch.from_numpy(taps["mixstyle.x"][:1])
    got = swap_frequency_statistics(one, torch.zeros(1, dtype=torch.long), torch.tensor([0.3]))
    close(got, taps["mixstyle_batch1.output"], spec)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_device_response_is_the_causal_convolution(folder: str) -> None:
    spec, taps = require(folder)
    x = waveform(511 + offset(spec), 0.25, 32_000)[0]
    got = convolve(x, taps["dir.impulse_response"][0])
    np.testing.assert_allclose(got, taps["dir.output"][0], rtol=0, atol=4 * spec["dir"]["float32_error"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_mixup_of_sources_and_labels(folder: str) -> None:
    spec, taps = require(folder)
    partners = torch.from_numpy(taps["mixup.permutation"]).long()
    raw = torch.from_numpy(taps["mixup.raw_beta"])
    share = torch.maximum(raw, 1 - raw)
    close(share, taps["mixup.lambda"], spec)
    sources = tensor(521 + offset(spec), (8, 1, 16, 24))
    labels = torch.from_numpy((recipe().tensor(522 + offset(spec), (8, 12)) > 0.8).astype(np.float32))
    close(mixup(sources, partners, share), taps["mixup.sources"], spec)
    close(mixup(labels, partners, share), taps["mixup.labels"], spec)
