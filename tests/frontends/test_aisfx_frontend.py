"""The aisfx frontend against a slow literal formula in float64, and its frame rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.frontends import aisfx_frontend as frontend


def literal_log_mel(samples: np.ndarray) -> np.ndarray:
    """Essentia's bands written out bin by bin: (frames, 96) float64."""
    clipped = np.clip(samples.astype(np.float64), -1.0, 1.0)
    frames = int(np.ceil((len(samples) + 1024) / 1024))
    window = np.array([0.5 - 0.5 * np.cos(2 * np.pi * i / 2047) for i in range(2048)])
    top = 1127.01048 * np.log(1 + 22050 / 700)
    edges = [top * i / 97 for i in range(98)]
    bin_mels = [1127.01048 * np.log(1 + (k * 44100 / 2048) / 700) for k in range(1025)]
    out = np.zeros((frames, 96))
    for k in range(frames):
        frame = np.zeros(2048)
        for i in range(2048):
            at = 1024 * k - 1024 + i
            if 0 <= at < len(clipped):
                frame[i] = clipped[at]
        power = np.abs(np.fft.rfft(frame * window)) ** 2
        for band in range(96):
            left, centre, right = edges[band : band + 3]
            weights = np.zeros(1025)
            for b, mel in enumerate(bin_mels):
                if left < mel <= centre:
                    weights[b] = (mel - left) / (centre - left)
                elif centre < mel < right:
                    weights[b] = (right - mel) / (right - centre)
            out[k, band] = np.log10(10000 * (weights / weights.sum()) @ power + 1)
    return out


def test_equals_the_literal_formula_and_clips() -> None:
    samples = np.random.default_rng(3).standard_normal(2_500).astype(np.float32) * 0.6
    assert np.abs(samples).max() > 1
    got = frontend.AisfxFrontend().log_mel(torch.from_numpy(samples)[None])[0]
    np.testing.assert_allclose(got.numpy(), literal_log_mel(samples), atol=1e-4)


@pytest.mark.parametrize(
    "samples", [1, 1_023, 1_024, 1_025, 50_000, 101_375, 101_376, 101_377, 152_576, 152_577]
)
def test_frame_and_block_rules(samples: int) -> None:
    frames = int(np.ceil((samples + 1024) / 1024))
    blocks = max(1, int(np.ceil((frames - 100) / 50 + 1)) - (1 if (frames - 100) % 50 else 0))
    assert frontend.frame_count(samples) == frames
    assert frontend.block_count(frames) == blocks
    module = frontend.AisfxFrontend()
    waveform = torch.zeros(2, samples)
    assert module.log_mel(waveform).shape == (2, frames, 96)
    assert module(waveform).shape == (2, blocks, 100, 96)


def test_a_window_of_101_376_samples_is_one_block() -> None:
    assert frontend.frame_count(101_376) == frontend.BLOCK_FRAMES
