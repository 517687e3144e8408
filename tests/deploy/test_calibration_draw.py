"""Calibration rows by cluster: every sound is heard equally often, whatever the store holds most of."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from pipeline.deploy.calibration import read_rows
from pipeline.deploy.calibration_draw import ClusterDraw, drawn_rows, equal_shares
from pipeline.store import schema
from pipeline.store.reader import StoreReader
from pipeline.store.writer import StoreWriter
from tests.deploy import tiny

# 60 rows about one point, 12 about another, 4 about a third; in every fourth row of each a class.
KINDS = np.random.default_rng(5).permutation(np.repeat([0, 1, 2], [60, 12, 4]))
CENTRES = np.array([[0.0, 0, 0, 0], [9, 0, 0, 0], [0, 9, 0, 0]])


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    rows = len(KINDS)
    rng = np.random.default_rng(1)
    embeddings = (CENTRES[KINDS] + rng.normal(0, 0.3, (rows, 4))).astype(np.float32)
    plan = pandas.DataFrame(
        {
            "row": range(rows),
            "key": [f"{row:016x}" for row in range(rows)],
            "split": ["validation" if row % 10 == 0 else "train" for row in range(rows)],
            "label": ["" if row % 2 else "abc"[KINDS[row]] for row in range(rows)],
            "clip_id": [f"clip{row // 2}" for row in range(rows)],
        }
    )
    spectrogram = schema.spectrogram_spec(tiny.FRONTEND, tiny.FRAMES)
    embedding = schema.embedding_spec("tiny", "ab" * 32, 4)
    meta = schema.StoreMeta(
        name="kinds", manifest_digest="0" * 64, shard_rows=8, chunk_rows=4, arrays=(spectrogram, embedding)
    )
    folder = tmp_path_factory.mktemp("kinds") / "store"
    log_mels = tiny.log_mels(rows)
    with StoreWriter.create(folder, plan, meta) as writer:
        for shard in writer.pending():
            first, end = writer.meta.bounds(shard)
            arrays = {spectrogram.path: log_mels[first:end], embedding.path: embeddings[first:end]}
            writer.write_shard(shard, arrays, [])
        writer.finish(config={}, inputs={})
    return StoreReader(folder)


@pytest.mark.parametrize("nearest", [True, False])
def test_each_cluster_gives_as_many_rows(reader: StoreReader, nearest: bool) -> None:
    found = drawn_rows(reader, np.arange(len(KINDS)), 24, ClusterDraw(3, nearest, seed=0))
    assert len(set(found.tolist())) == 24
    assert np.all(np.diff(found) > 0)
    # The third has but 4 rows: the others share what it cannot give.
    assert np.bincount(KINDS[found]).tolist() == [10, 10, 4]


def test_nearest_rows_are_those_by_their_centre_and_draws_follow_the_seed(reader: StoreReader) -> None:
    embeddings = np.concatenate(
        [reader.read_shard(shard, ("embedding",))["embedding"] for shard in range(reader.meta.shards)]
    )
    allowed = np.arange(len(KINDS))
    found = drawn_rows(reader, allowed, 15, ClusterDraw(3, True))
    for kind in range(3):
        members = np.flatnonzero(kind == KINDS)
        distance = np.linalg.norm(embeddings[members] - embeddings[members].mean(axis=0), axis=1)
        chosen = np.isin(members, found)
        assert (
            distance[chosen].max() <= distance[~chosen].min(initial=np.inf) + 0.05
        )  # mini-batches: near the mean
    draws = [drawn_rows(reader, allowed, 15, ClusterDraw(3, False, seed)).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_only_allowed_rows_are_drawn_and_few_are_all_taken(reader: StoreReader) -> None:
    allowed = np.flatnonzero(KINDS != 1)[::2]
    assert set(drawn_rows(reader, allowed, 20, ClusterDraw(4, False))) <= set(allowed)
    np.testing.assert_array_equal(drawn_rows(reader, allowed, 500, ClusterDraw(4, False)), allowed)


@pytest.mark.parametrize(
    ("sizes", "number", "shares"),
    [
        ([10, 10, 10], 9, [3, 3, 3]),
        ([10, 10, 10], 10, [4, 3, 3]),
        ([1, 50, 3], 20, [1, 16, 3]),
        ([2, 0, 2], 9, [2, 0, 2]),
        ([5, 9, 7], 2, [0, 1, 1]),
    ],
)
def test_shares_are_as_equal_as_the_sizes_allow(sizes: list[int], number: int, shares: list[int]) -> None:
    assert equal_shares(sizes, number) == shares


def test_no_row_serves_two_purposes_and_the_probe_has_labelled_training_rows(reader: StoreReader) -> None:
    rows = read_rows(
        reader, calibration=12, held_out=5, choice=32, draw=ClusterDraw(3, False), label_column="label"
    )
    assert rows.choice is not None
    assert rows.labelled is not None
    parts = [rows.calibration, rows.held_out, rows.choice, rows.labelled.log_mels]
    assert [len(part) for part in parts[:3]] == [12, 5, 32]
    contents = [row.tobytes() for part in parts for row in part]
    assert len(set(contents)) == len(contents)
    stored = np.concatenate(
        [reader.read_shard(s, ("spectrogram",))["spectrogram"] for s in range(reader.meta.shards)]
    ).astype(np.float32)
    index = {row.tobytes(): number for number, row in enumerate(stored[:, None])}
    where = [[index[row.tobytes()] for row in part] for part in parts]
    splits = reader.rows["split"].to_numpy()
    assert {splits[n] for n in where[1]} == {"validation"}
    assert {splits[n] for part in (where[0], where[2], where[3]) for n in part} == {"train"}
    labels = reader.rows["label"].to_numpy()
    assert rows.labelled.labels.tolist() == labels[where[3]].tolist()
    assert "" not in rows.labelled.labels
    assert "clusters" in rows.draw
