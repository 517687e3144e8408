"""Weights of rows: what each balance promises, and the cap."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.weights import (
    capped,
    cluster_weights,
    label_codes,
    label_weights,
    view_classes,
    with_shares,
)
from pipeline.errors import ConfigError, TrainingError


@given(clusters=st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_every_cluster_has_the_same_share(clusters: list[int]) -> None:
    weights = cluster_weights(np.array(clusters))
    shares = {c: sum(w for w, k in zip(weights, clusters, strict=True) if k == c) for c in set(clusters)}
    assert shares == pytest.approx(dict.fromkeys(shares, 1 / len(shares)))


@given(labels=st.lists(st.sets(st.integers(0, 6), max_size=4), min_size=1, max_size=40))
def test_label_weights_by_the_literal_formula(labels: list[set[int]]) -> None:
    if not any(labels):
        with pytest.raises(TrainingError, match="no row has a label"):
            label_weights([sorted(row) for row in labels])
        return
    raw = [sum(1000 / (7 + sum(k in other for other in labels)) for k in row) for row in labels]
    found = label_weights([sorted(row) for row in labels], offset=7)
    assert found.tolist() == pytest.approx([w / sum(raw) for w in raw])


def test_labels_joined_by_semicolons() -> None:
    values = pd.Series(["dog; bark", "", None, "bark;bark ;", "cat"])
    assert label_codes(values) == [[0, 1], [], [], [1], [2]]
    assert label_codes(values, one_label_for_none=True) == [[0, 1], [2], [2], [1], [3]]


def test_groups_get_their_shares_and_keep_what_is_within() -> None:
    groups = np.array(["a", "b", "a", "b", "b", "c"], dtype=object)
    weights = np.array([1.0, 2.0, 3.0, 4.0, 2.0, 9.0])
    found = with_shares(weights, groups, {"a": 1, "b": 3, "c": 0}, "dataset")
    assert found.tolist() == pytest.approx([1 / 16, 3 / 16, 3 / 16, 6 / 16, 3 / 16, 0])
    with pytest.raises(ConfigError, match="says nothing of c"):
        with_shares(weights, groups, {"a": 1, "b": 3}, "dataset")
    with pytest.raises(ConfigError, match="no training row has: 'd'"):
        with_shares(weights, groups, {"a": 1, "b": 3, "c": 1, "d": 1}, "dataset")
    with pytest.raises(TrainingError, match="every row of view 'a'"):
        with_shares(weights * (groups != "a"), groups, {"a": 1, "b": 3, "c": 1}, "view")


@settings(max_examples=80)
@given(
    weights=st.lists(st.floats(0, 100), min_size=1, max_size=30),
    rows=st.integers(1, 200),
    repeats=st.floats(1, 20),
)
def test_the_cap_holds_and_keeps_proportions(weights: list[float], rows: int, repeats: float) -> None:
    given_weights = np.array(weights)
    if given_weights.sum() < 1e-6:
        return
    given_weights /= given_weights.sum()
    given_weights[given_weights < 1e-9] = 0
    given_weights /= given_weights.sum()
    positive = int((given_weights > 0).sum())
    if positive * repeats < rows * (1 - 1e-9):
        with pytest.raises(ConfigError, match="max_repeats leaves an epoch unfilled"):
            capped(given_weights, rows, repeats)
        return
    found = capped(given_weights, rows, repeats)
    assert found.sum() == pytest.approx(1)
    assert found.max() * rows <= repeats * (1 + 1e-9)
    free = (found * rows < repeats * (1 - 1e-9)) & (given_weights > 0)
    if free.any():
        ratio = found[free] / given_weights[free]
        assert ratio.max() == pytest.approx(ratio.min())
        # Rows at the limit would be above it at the others' scale: none was cut without need.
        assert (given_weights[(given_weights > 0) & ~free] * ratio[0] * rows >= repeats * (1 - 1e-6)).all()
    assert (found[given_weights == 0] == 0).all()


def test_views_by_what_they_were_drawn_with() -> None:
    def drawn(**parameters: object) -> str:
        return json.dumps({"gain_db": 0.0, **parameters})

    rows = pd.DataFrame({
        "view": ["clean", "augmented", "augmented", "augmented", "augmented", "mix", "augmented"],
        "view_parameters": [
            "", drawn(device="a.wav"), drawn(device="b.wav", room={"x": 1}), drawn(snr_db=0.0),
            drawn(gain_db=-3.0), "", drawn(),
        ],
    })  # fmt: skip
    names = ("augmented", "augmented:room", "augmented:device", "augmented:background", "clean")
    assert view_classes(rows, names).tolist() == [
        "clean", "augmented:device", "augmented:device", "augmented:background", "augmented", "", "augmented",
    ]  # fmt: skip
    assert view_classes(rows, ("augmented:room", "augmented:gain")).tolist() == [
        "", "", "augmented:room", "", "augmented:gain", "", "",
    ]  # fmt: skip
    assert view_classes(rows[["view"]], ("augmented:room", "mix")).tolist() == ["", "", "", "", "", "mix", ""]
    assert view_classes(pd.DataFrame(index=range(2)), ("clean",)).tolist() == ["clean", "clean"]


def test_a_row_without_a_cluster() -> None:
    with pytest.raises(TrainingError, match="no cluster"):
        cluster_weights(np.array([0, -1]))
