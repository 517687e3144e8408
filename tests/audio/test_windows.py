"""The one rule from seconds to frames, and where windows lie."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audio.windows import fit, frame_count, spread_starts, window_starts
from pipeline.config import EmbedConfig

LENGTHS = st.integers(1, 50_000)


@given(st.integers(0, 10**7), st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000, 192_000]))
def test_seconds_made_from_frames_give_the_frames_back(frames: int, rate_hz: int) -> None:
    assert frame_count(frames / rate_hz, rate_hz) == frames


@given(st.floats(0, 1_000, allow_nan=False), st.integers(1_000, 200_000))
def test_the_rule_is_nearest_and_halves_go_up(seconds: float, rate_hz: int) -> None:
    product = Decimal(seconds * rate_hz)
    expected = int(product.quantize(Decimal(1), rounding=ROUND_HALF_UP))
    # Adding one half in floating point may round a value just below a half up.
    assert abs(frame_count(seconds, rate_hz) - expected) <= (
        1 if abs(product % 1 - Decimal("0.5")) < 1e-6 else 0
    )


def test_the_default_window_is_exactly_the_teachers() -> None:
    assert frame_count(EmbedConfig().window_seconds, 44_100) == 101_376
    assert EmbedConfig().frontend.frames(frame_count(EmbedConfig().window_seconds, 16_000)) == 115


@given(LENGTHS, LENGTHS, st.integers(1, 60), st.integers(0, 99))
def test_windows_lie_inside_the_clip_and_do_not_overlap(
    frames: int, window: int, maximum: int, seed: int
) -> None:
    starts = window_starts(frames, window, maximum, (seed,))
    assert len(starts) == min(maximum, max(1, frames // window))
    assert starts == window_starts(frames, window, maximum, (seed,))
    if frames > window:
        assert starts[0] >= 0 and starts[-1] + window <= frames
        assert all(after - before >= window for before, after in pairwise(starts))
    else:
        assert starts == [0]


def test_offsets_are_random_and_cover_what_is_left_over() -> None:
    starts = [window_starts(1_099, 100, 50, (seed,))[0] for seed in range(2_000)]
    assert min(starts) == 0 and max(starts) == 99
    assert 45 < np.mean(starts) < 54


def test_more_windows_than_wanted_are_drawn_from_the_whole_clip() -> None:
    drawn = np.array([window_starts(100_000, 100, 5, (seed,)) for seed in range(400)])
    assert (np.diff(drawn, axis=1) >= 100).all()
    assert 45_000 < drawn.mean() < 55_000 and drawn.min() < 2_000 and drawn.max() > 98_000


@given(LENGTHS, LENGTHS, st.integers(1, 10))
def test_spread_windows_reach_from_the_first_frame_to_the_last(
    frames: int, window: int, maximum: int
) -> None:
    starts = spread_starts(frames, window, maximum)
    assert 1 <= len(starts) <= maximum
    assert starts == sorted(set(starts))
    if frames <= window:
        assert starts == [0]
    elif len(starts) > 1:
        assert starts[0] == 0 and starts[-1] + window == frames


def test_fitting_cuts_or_pads_with_zeros() -> None:
    wave = np.arange(1, 6, dtype=np.float32)
    assert fit(wave, 3).tolist() == [1, 2, 3]
    assert fit(wave, 7).tolist() == [1, 2, 3, 4, 5, 0, 0]
