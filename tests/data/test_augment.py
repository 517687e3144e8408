"""Masks, rolls, and what a cached target does not allow."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.augment import (
    AUGMENTATIONS,
    draw_spans,
    frequency_mask,
    require_exact,
    spec_augment,
    time_mask,
    time_roll,
)
from pipeline.errors import ConfigError

FILL = -6.25


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("mask", "axis"), [(frequency_mask, 1), (time_mask, 2)])
def test_one_span_of_one_axis_is_filled(mask: object, axis: int) -> None:
    original = torch.randn(200, 16, 24)
    masked = mask(original, 7, FILL, seeded())  # type: ignore[operator]
    widths = []
    for before, after in zip(original, masked, strict=True):
        changed = (before != after).any(dim=2 - axis)
        hidden = changed.nonzero().flatten().tolist()
        widths.append(len(hidden))
        assert hidden == list(range(hidden[0], hidden[0] + len(hidden))) if hidden else True
        assert (after.movedim(axis - 1, 0)[changed] == FILL).all()
        assert torch.equal(after.movedim(axis - 1, 0)[~changed], before.movedim(axis - 1, 0)[~changed])
    assert set(widths) == set(range(8))


def test_spans_are_uniform() -> None:
    start, end = draw_spans(40_000, 10, 3, seeded())
    width = end - start
    counts = torch.bincount(width, minlength=4) / len(width)
    assert torch.allclose(counts, torch.full((4,), 0.25), atol=0.01)
    for wide in range(4):
        places = torch.bincount(start[width == wide], minlength=11 - wide)
        assert len(places) == 11 - wide
        expected = places.sum() / (11 - wide)
        assert ((places - expected).abs() < 5 * expected.sqrt()).all()


def test_the_whole_axis_may_be_masked() -> None:
    masked = time_mask(torch.ones(500, 2, 3), 3, FILL, seeded())
    assert (masked == FILL).flatten(1).all(dim=1).any()


def test_roll_is_one_circular_shift_of_the_batch() -> None:
    original = torch.arange(4 * 2 * 9.0).reshape(4, 2, 9)
    found = set()
    for seed in range(60):
        rolled = time_roll(original, 3, seeded(seed))
        shifts = [
            shift
            for shift in range(-3, 4)
            if torch.equal(rolled, torch.stack([original[:, :, (n - shift) % 9] for n in range(9)], dim=2))
        ]
        assert len(shifts) == 1
        found.add(shifts[0])
    assert found == set(range(-3, 4))


def test_equal_generators_give_equal_masks_and_the_input_stays() -> None:
    original = torch.randn(8, 16, 24)
    kept = original.clone()
    options = {"freq_mask_rows": 5, "time_mask_frames": 6, "fill": FILL}
    one = spec_augment(original, **options, generator=seeded(3))  # type: ignore[arg-type]
    two = spec_augment(original, **options, generator=seeded(3))  # type: ignore[arg-type]
    other = spec_augment(original, **options, generator=seeded(4))  # type: ignore[arg-type]
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(original, kept)


@pytest.mark.parametrize("per_clip", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_masks_are_those_of_a_select(per_clip: bool, in_place: bool) -> None:
    """Float64 rows take the path of devices: a select by a mask of booleans."""
    options = {"freq_mask_rows": 9, "time_mask_frames": 12, "fill": FILL, "freq_masks": 2, "time_masks": 2}
    original = torch.randn(7, 20, 30)
    expected = spec_augment(original.double(), **options, per_clip=per_clip, generator=seeded(5))  # type: ignore[arg-type]
    masked = spec_augment(original, **options, per_clip=per_clip, in_place=in_place, generator=seeded(5))  # type: ignore[arg-type]
    assert (masked == FILL).any()
    assert torch.equal(masked, expected.float())
    assert (masked is original) == in_place


def test_limits_of_nothing_change_nothing() -> None:
    original = torch.randn(3, 4, 5)
    masked = spec_augment(original, freq_mask_rows=0, time_mask_frames=0, fill=0.0, generator=seeded())
    assert torch.equal(time_roll(masked, 0, seeded()), original)


@pytest.mark.parametrize(
    "call", [lambda x: time_mask(x, 6, 0.0, seeded()), lambda x: time_roll(x, -1, seeded())]
)
def test_limits_that_cannot_be(call: object) -> None:
    with pytest.raises(ConfigError, match="cannot reach"):
        call(torch.zeros(1, 4, 5))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["time_reversal", "pitch_shift", "mixup"])
def test_what_a_cached_target_does_not_allow(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_exact(name)
    assert AUGMENTATIONS[name].reason in str(caught.value)
    assert "views" in str(caught.value)


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(ConfigError, match="time_mask"):
        require_exact("time_maks")
    assert require_exact("time_mask").validity == "exact"
