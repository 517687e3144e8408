"""Weights and caps over datasets, and splits that a dataset brings with it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from pipeline.audio import mixture
from pipeline.config import ManifestConfig
from pipeline.errors import ConfigError
from pipeline.manifest import refuse_leakage, settle_splits


def windows(**counts: int) -> pd.DataFrame:
    rows = [(name, f"{name}-{number}") for name, count in counts.items() for number in range(count)]
    return pd.DataFrame(rows, columns=["dataset", "key"])


def left(frame: pd.DataFrame, **keys: object) -> dict[str, int]:
    kept = frame[mixture.kept(frame, ManifestConfig.model_validate(keys))]
    return {str(k): int(v) for k, v in kept["dataset"].value_counts().items()}


def test_weights_keep_shares_exact_and_as_much_as_they_allow() -> None:
    frame = windows(audioset=1_000, internal=90)
    assert left(frame, weights={"audioset": 1, "internal": 1}) == {"audioset": 90, "internal": 90}
    assert left(frame, weights={"audioset": 3, "internal": 1}) == {"audioset": 270, "internal": 90}
    assert left(frame, weights={"audioset": 1, "internal": 0}) == {"audioset": 1_000}


def test_caps_come_before_weights() -> None:
    frame = windows(audioset=1_000, internal=90)
    found = left(frame, weights={"audioset": 1, "internal": 1}, caps={"internal": 20})
    assert found == {"audioset": 20, "internal": 20}
    assert left(frame, caps={"audioset": 10, "unheard_of": 3}) == {"audioset": 10, "internal": 90}


def water_filled(available: dict[str, int], weights: dict[str, float], total: int) -> dict[str, float]:
    """The level to which every dataset is filled, found by bisection: min(available, level x weight) sums to total."""
    low, high = 0.0, 1e9
    for _ in range(200):
        level = (low + high) / 2
        poured = sum(min(available[name], level * weights[name]) for name in available)
        low, high = (level, high) if poured < total else (low, level)
    return {name: min(available[name], high * weights[name]) for name in available}


def test_a_total_is_shared_out_like_water() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        names = "abcd"[: generator.integers(1, 5)]
        available = {name: int(generator.integers(1, 200)) for name in names}
        weights = {name: float(generator.integers(1, 9)) for name in names}
        total = int(generator.integers(1, sum(available.values()) + 1))
        found = mixture.shares(available, weights, total)
        assert sum(found.values()) == total
        exact = water_filled(available, weights, total)
        assert all(abs(found[name] - exact[name]) < 1 + 1e-6 for name in names), (available, weights, total)


def test_a_total_beyond_what_there_is_gives_all() -> None:
    assert left(windows(a=3, b=5), weights={"a": 1, "b": 1}, total_windows=100) == {"a": 3, "b": 5}


def test_the_draw_of_a_dataset_does_not_depend_on_the_others() -> None:
    alone, together = windows(a=100), windows(b=50, a=100)
    keys = []
    for frame, weights in ((alone, {"a": 1.0}), (together, {"a": 1.0, "b": 1.0})):
        config = ManifestConfig(weights=weights, caps={"a": 30})
        kept = frame[mixture.kept(frame, config)]
        keys.append(sorted(kept["key"][kept["dataset"] == "a"]))
    assert keys[0] == keys[1]
    other = ManifestConfig(caps={"a": 30}, seed=1)
    assert sorted(alone["key"][mixture.kept(alone, other)]) != keys[0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1}, "leaves out the dataset 'b'"),
        ({"a": 1, "b": 1, "bb": 1}, "names 'bb'"),
        ({"a": 0, "b": 0}, "every weight is 0"),
    ],
)
def test_weights_must_name_what_there_is(weights: dict[str, float], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        left(windows(a=3, b=5), weights=weights)


def test_a_total_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="total_windows wants weights"):
        ManifestConfig(total_windows=5)


def clips(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["dataset", "group", "split"])


def test_official_splits_stand_and_the_rest_is_drawn_by_group() -> None:
    drawn = [("own", f"g{n // 2}", "") for n in range(40)]
    frame = clips(("fsd", "ann", "train"), ("fsd", "bob", "validation"), ("fsd", "ann", ""), *drawn)
    settled = settle_splits(frame, 0.25, 0, {"own": 0.5})
    assert list(settled["split"][:3]) == ["train", "validation", "train"]
    assert (settled["split"][3:] == "validation").sum() == 20
    refuse_leakage(settled)
    assert settled["group"].equals(frame["group"])


def test_a_group_that_its_dataset_cuts_is_two_groups() -> None:
    settled = settle_splits(
        clips(("d", "ann", "train"), ("d", "ann", "validation"), ("d", "bob", "train")), 0.1, 0
    )
    assert list(settled["group"]) == ["ann (train)", "ann (validation)", "bob"]
    refuse_leakage(settled)


def test_without_official_splits_nothing_changes() -> None:
    from pipeline.manifest import assign_splits

    frame = clips(*(("d", f"g{n % 7}", "") for n in range(50)), *(("e", f"g{n % 5}", "") for n in range(20)))
    for share, seed in product((0.1, 0.4), (0, 3)):
        assert list(settle_splits(frame, share, seed)["split"]) == list(assign_splits(frame, share, seed))
