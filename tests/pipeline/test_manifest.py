"""Manifests: split by group, validated, refused when they leak or leave their root."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import artifact, manifest
from pipeline.errors import ManifestError, MissingArtifactError


def frame(groups: list[str], dataset: str = "d") -> pd.DataFrame:
    n = len(groups)
    return pd.DataFrame(
        {
            "clip_id": [f"{dataset}{i:04d}" for i in range(n)],
            "root": "r",
            "path": [f"{dataset}/{i}.wav" for i in range(n)],
            "source": "s",
            "dataset": dataset,
            "group": groups,
            "split": "train",
            "fold": -1,
            "label": "",
            "kind": "music",
            "licence": "CC0-1.0",
            "credit": "me",
            "sample_rate_hz": 16_000,
            "channels": 1,
            "frames": 16_000,
            "duration_seconds": 1.0,
        }
    )


@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60), st.floats(0, 0.9), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_no_group_is_ever_on_both_sides(groups: list[str], share: float, seed: int) -> None:
    rows = frame(groups)
    rows["split"] = manifest.assign_splits(rows, share, seed)
    for group in set(groups):
        assert len(set(rows.loc[rows["group"] == group, "split"])) == 1
    assert (rows["split"] == "validation").sum() <= share * len(rows)
    manifest.refuse_leakage(rows)


def test_a_share_of_a_tenth_is_nearly_reached_where_groups_are_small() -> None:
    rows = frame([f"g{i}" for i in range(200)])
    assert (manifest.assign_splits(rows, 0.1, 0) == "validation").sum() == 20


def test_adding_a_dataset_moves_no_clip_of_another() -> None:
    first = frame([f"g{i}" for i in range(40)], "first")
    both = pd.concat([frame([f"g{i}" for i in range(40)], "added"), first], ignore_index=True)
    alone = manifest.assign_splits(first, 0.2, 3).tolist()
    assert manifest.assign_splits(both, 0.2, 3).tolist()[40:] == alone


def test_a_leak_is_named() -> None:
    rows = frame(["kit", "kit"])
    rows.loc[1, "split"] = "validation"
    with pytest.raises(ManifestError, match="both sides") as caught:
        manifest.refuse_leakage(rows)
    assert "kit" in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("path", "../secret.wav", "leaves its root"),
        ("path", "/etc/passwd", "leaves its root"),
        ("licence", "", "no licence"),
        ("kind", "noise", "unknown kind"),
        ("split", "test", "unknown split"),
        ("root", "elsewhere", "unknown root"),
        ("clip_id", "d0001", "appear twice"),
    ],
)
def test_an_impossible_row_is_refused(column: str, value: str, words: str) -> None:
    rows = frame(["a", "b"])
    rows.loc[0, column] = value
    with pytest.raises(ManifestError, match=words):
        manifest.validate(rows, {"r": Path()})


def test_a_missing_column_and_an_empty_table_are_refused() -> None:
    with pytest.raises(ManifestError, match="lacks columns"):
        manifest.validate(frame(["a"]).drop(columns="licence"), {"r": Path()})
    with pytest.raises(ManifestError, match="holds no clip"):
        manifest.validate(frame([]), {"r": Path()})


def test_a_changed_table_is_noticed(tmp_path: Path) -> None:
    rows = frame(["a", "b"])
    rows.to_parquet(tmp_path / "clips.parquet", index=False)
    (tmp_path / "roots.json").write_text('{"r": "."}')
    with pytest.raises(MissingArtifactError):
        manifest.read(tmp_path)
    summary = {"content": manifest.content_digest(rows)}
    artifact.finish(tmp_path, kind="manifest", config={}, inputs={}, summary=summary)
    assert manifest.read(tmp_path).frame["clip_id"].tolist() == rows["clip_id"].tolist()
    rows.loc[0, "label"] = "other"
    rows.to_parquet(tmp_path / "clips.parquet", index=False)
    with pytest.raises(ManifestError, match="changed after it was made"):
        manifest.read(tmp_path)


def test_the_content_digest_ignores_row_order_and_index() -> None:
    rows = frame(["a", "b", "c"])
    assert manifest.content_digest(rows) == manifest.content_digest(rows.iloc[[2, 0, 1]])
    changed = rows.assign(label="x")
    assert manifest.content_digest(rows) != manifest.content_digest(changed)


def test_draw_order_is_a_permutation_that_adding_keys_keeps_in_relative_order() -> None:
    keys = pd.Series([f"k{i}" for i in range(50)])
    order = manifest.draw_order(keys, 1)
    assert sorted(order) == list(range(50))
    more = manifest.draw_order(pd.concat([keys, pd.Series(["new"])], ignore_index=True), 1)
    assert np.array_equal(more[more < 50], order)
    assert not np.array_equal(order, manifest.draw_order(keys, 2))
