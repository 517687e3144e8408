"""Tasks, their clips and their folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, ManifestError, MissingArtifactError
from pipeline.evaluation import clips as task_clips
from pipeline.evaluation.folds import assign_folds
from pipeline.evaluation.task import FoldPlan, read_task
from pipeline.manifest import COLUMNS, Manifest
from pipeline.recipe import DATA_MANIFESTS

TASKS = DATA_MANIFESTS / "tasks"


def manifest(rows: list[dict[str, object]]) -> Manifest:
    """Return a manifest of ``rows``, the columns they leave out filled in."""
    filled = []
    for number, row in enumerate(rows):
        known = {
            "clip_id": f"{number:016x}",
            "root": "r",
            "path": f"{number}.wav",
            "dataset": "d",
            "group": "g",
        }
        known |= {"split": "train", "label": "", "kind": "other", "licence": "CC0-1.0", "fold": -1}
        filled.append({**known, **row})
    frame = pd.DataFrame(filled)
    for column in COLUMNS:
        if column not in frame.columns:
            frame[column] = 0
    return Manifest(frame, {"r": Path("/audio")}, "0" * 64, Path("/manifest"))


@pytest.mark.parametrize("path", sorted(TASKS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_task_reads_and_has_a_licence(path: Path) -> None:
    task = read_task(path.stem, TASKS)
    assert task.name == path.stem
    assert task.licence
    assert task.title


def test_unknown_task_lists_near_matches() -> None:
    with pytest.raises(ConfigError) as caught:
        read_task("drumz", TASKS)
    assert "drums" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("title = [", "not valid TOML"),
        ("title = 't'\nlicence = 'l'\nsurprise = 1\n[audio]\nsource = 'manifest'", "surprise"),
        ('title = "t"\nlicence = "l"\n[audio]\nsource = "manifest"\n[folds]\nkind = "column"', "fold_column"),
        ('title = "t"\nlicence = "l"\n[audio]\nsource = "csv"\n[folds]\nkind = "stratified_k_fold"', "needs a file"),
        ('title = "t"\n[audio]\nsource = "manifest"\n[folds]\nkind = "stratified_k_fold"', "licence"),
    ],
)  # fmt: skip
def test_impossible_tasks_are_refused(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_task("bad", tmp_path)


def drum_rows(kits: int = 8) -> list[dict[str, object]]:
    return [
        {"dataset": "hydrogen-drumkits", "group": f"kit{kit}", "label": label}
        for kit in range(kits)
        for label in ("kick", "snare", "hihat")
        for _ in range(1 + kit % 3)
    ]


def test_drums_keep_kits_whole() -> None:
    rows = [*drum_rows(), {"dataset": "hydrogen-drumkits", "label": "", "group": "kit0"}, {"label": "kick"}]
    rows.append({"dataset": "hydrogen-drumkits", "label": "clap", "group": "kit1"})
    clips = task_clips.from_manifest(read_task("drums", TASKS), manifest(rows))
    assert clips is not None
    assert len(clips.frame) == len(drum_rows())
    assert clips.left_out == {"clap": 1}
    assert clips.frame["fold"].nunique() == 5
    assert (clips.frame.groupby("group")["fold"].nunique() == 1).all()
    assert clips.frame["path"].str.startswith("/audio/").all()


def test_a_manifest_without_the_dataset_gives_no_task() -> None:
    assert task_clips.from_manifest(read_task("drums", TASKS), manifest([{"label": "kick"}])) is None


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1_000), st.integers(2, 5), st.sampled_from(["grouped_k_fold", "stratified_k_fold"]))
def test_drawn_folds_hold_every_clip_once_and_are_seeded(seed: int, count: int, kind: str) -> None:
    generator = np.random.default_rng(seed)
    size = 60
    frame = pd.DataFrame(
        {
            "clip_id": [f"{i:03d}" for i in range(size)],
            "label": np.where(np.arange(size) % 2, "x", "y"),
            "group": [f"g{g}" for g in np.concatenate([np.arange(10), generator.integers(0, 10, size - 10)])],
        }
    )
    plan = FoldPlan(kind=kind, count=count, seed=seed)
    first, left_out = assign_folds(frame, plan, "t")
    assert left_out == {}
    assert sorted(first["clip_id"]) == sorted(frame["clip_id"])
    assert set(first["fold"]) <= set(range(count))
    pd.testing.assert_frame_equal(first, assign_folds(frame, plan, "t")[0])
    if kind == "grouped_k_fold":
        assert (first.groupby("group")["fold"].nunique() == 1).all()
    else:
        counts = first.groupby(["fold", "label"]).size().unstack(fill_value=0)
        assert (counts.max() - counts.min() <= 1).all()


def test_folds_that_cannot_be_are_refused() -> None:
    frame = pd.DataFrame({"clip_id": list("abcdef"), "label": list("xxxyyy"), "group": list("gggggg")})
    with pytest.raises(ManifestError, match="cannot be divided"):
        assign_folds(frame, FoldPlan(kind="grouped_k_fold"), "t")
    column = FoldPlan(kind="column")
    with pytest.raises(ManifestError, match="more than one fold"):
        assign_folds(frame.assign(given_fold=[1, 1, 1, 2, 2, 2]), column, "t")
    with pytest.raises(ManifestError, match="no whole number"):
        assign_folds(frame.assign(given_fold=["1", "x", "", "2", "2", "2"]), column, "t")
    with pytest.raises(ManifestError, match="two folds"):
        assign_folds(frame.assign(given_fold=1), column, "t")


def esc10_table(folder: Path, rows: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "esc10.csv").write_text("path,fold,class,freesound_id,licence\n" + "\n".join(rows))


def test_esc10_layout(tmp_path: Path) -> None:
    task = read_task("esc10", TASKS)
    with pytest.raises(MissingArtifactError, match="no table"):
        task_clips.from_csv(task, tmp_path)
    esc10_table(
        tmp_path, ["audio/a.ogg,1,Dog bark,7,CC0", "audio/b.ogg,2,Rain,8,CC0", "audio/c.ogg,2,Rain,9,CC0"]
    )
    clips = task_clips.from_csv(task, tmp_path)
    assert list(clips.frame["fold"]) == [1, 2, 2]
    assert list(clips.frame["group"]) == ["7", "8", "9"]
    assert list(clips.frame["path"]) == [str(tmp_path / f"audio/{name}.ogg") for name in "abc"]
    moved = tmp_path / "moved"
    esc10_table(
        moved, ["audio/c.ogg,2,Rain,9,CC0", "audio/b.ogg,2,Rain,8,CC0", "audio/a.ogg,1,Dog bark,7,CC0"]
    )
    assert task_clips.from_csv(task, moved).digest() == clips.digest()
    esc10_table(
        moved, ["audio/c.ogg,1,Rain,9,CC0", "audio/b.ogg,2,Rain,8,CC0", "audio/a.ogg,1,Dog bark,7,CC0"]
    )
    assert task_clips.from_csv(task, moved).digest() != clips.digest()


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["../a.ogg,1,Dog,7,x", "b.ogg,2,Rain,8,x"], "leaves its root"),
        (["a.ogg,1,Dog,7,x", "b.ogg,2,Dog,8,x"], "two classes"),
        (["a.ogg,1,Dog,7,x", "a.ogg,2,Rain,8,x"], "appear twice"),
    ],
)
def test_bad_tables_are_refused(rows: list[str], problem: str, tmp_path: Path) -> None:
    esc10_table(tmp_path, rows)
    with pytest.raises(ManifestError, match=problem):
        task_clips.from_csv(read_task("esc10", TASKS), tmp_path)


def test_own_tables(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    rows = [f"{i}.wav,{'ab'[i % 2]},s{i // 4}" for i in range(40)]
    table.write_text("path,kind,speaker\n" + "\n".join(rows))
    task = task_clips.table_task(table, "kind", "speaker")
    clips = task_clips.from_table(task, table)
    assert (clips.frame.groupby("group")["fold"].nunique() == 1).all()
    plain = task_clips.from_table(task_clips.table_task(table, "kind", None), table)
    assert plain.frame["fold"].nunique() == 5
    parquet = tmp_path / "mine.parquet"
    pd.read_csv(table).to_parquet(parquet)
    again = task_clips.from_table(task_clips.table_task(parquet, "kind", None), parquet)
    assert again.digest() == plain.digest()
    with pytest.raises(ManifestError, match="no column 'kin'"):
        task_clips.from_table(task_clips.table_task(table, "kin", None), table)
    with pytest.raises(MissingArtifactError, match="no table of clips"):
        task_clips.table_task(tmp_path / "absent.csv", "kind", None)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no parquet")
    with pytest.raises(ManifestError, match="cannot be read"):
        task_clips.table_task(broken, "kind", None)


def test_own_labels_and_unlabelled_clips() -> None:
    rows = [{"label": "ab"[i % 2], "group": f"{i}"} for i in range(14)] + [{"label": "lone"}, {"label": ""}]
    clips = task_clips.own_labels(manifest(rows))
    assert clips is not None
    assert len(clips.frame) == 14
    assert clips.left_out == {"lone": 1}
    assert task_clips.own_labels(manifest([{"label": "a"}, {"label": "b"}])) is None
    bare = task_clips.unlabelled(manifest([{} for _ in range(20)]), seed=0)
    assert not bare.labelled
    assert len(bare.frame) == 20
