"""Stores made on several machines become one: byte for byte the one that a single machine makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pandas
import pytest

from pipeline.errors import DigestMismatchError, StoreError
from pipeline.store.commits import commit_path
from pipeline.store.merge import merge
from pipeline.store.reader import StoreReader
from pipeline.store.schema import embedding_spec, output_spec
from pipeline.store.verification import verify
from pipeline.store.writer import StoreWriter
from tests.store import made_store

MADE = made_store.content(100, rejected=(3, 64, 99))


def part(folder: Path, shards: list[int], made: made_store.Content = MADE) -> Path:
    with StoreWriter.create(folder, made.rows, made_store.meta(made_store.specs(), 32, 8)) as writer:
        made_store.write_pending(writer, made, shards)
    return folder


def test_disjoint_shards_of_one_plan(tmp_path: Path) -> None:
    whole = made_store.make_store(tmp_path / "whole", MADE)
    parts = [part(tmp_path / "a", [0, 3]), part(tmp_path / "b", [2])]
    found = merge(parts, tmp_path / "c")
    assert (found.how, found.copied, found.pending, found.finished) == ("shards", 6, 2, None)
    found = merge([*parts, part(tmp_path / "d", [1, 2])], tmp_path / "c")
    assert (found.copied, found.pending) == (2, 0)
    assert found.finished is not None
    assert found.finished.summary["rejected"] == 3
    assert made_store.file_bytes(tmp_path / "c") == made_store.file_bytes(whole)
    assert verify(tmp_path / "c").sound


def test_a_teacher_each(tmp_path: Path) -> None:
    """One machine ran one teacher over all rows, another another one."""
    whole = made_store.make_store(tmp_path / "whole", MADE)
    other = output_spec("other", "12" * 32, "logits", (made_store.DIM,), top_k=3)
    with StoreWriter.create(tmp_path / "b", MADE.rows, made_store.meta((other,), 32, 8)) as writer:
        for shard in writer.pending():
            start, stop = writer.meta.bounds(shard)
            writer.write_shard(shard, {other.path: MADE.embedding[start:stop]}, MADE.rejects(start, stop))
    merge([whole, tmp_path / "b"], tmp_path / "c")
    reader = StoreReader(tmp_path / "c", teacher="linear")
    numpy.testing.assert_array_equal(reader.read_shard(1)["embedding"][1:], MADE.embedding[33:64])
    assert StoreReader(tmp_path / "c", teacher="other:logits").embedding.top_k == 3
    assert verify(tmp_path / "c").sound


def test_the_same_shard_with_other_content(tmp_path: Path) -> None:
    other = made_store.content(100, rejected=(3, 64, 99))
    other.embedding[40, 0] += 1
    parts = [part(tmp_path / "a", [0, 1]), part(tmp_path / "b", [1, 2], other)]
    with pytest.raises(StoreError, match=r"shard 1 .* differs between two stores") as caught:
        merge(parts, tmp_path / "c")
    assert str(tmp_path / "a") in str(caught.value)
    assert str(tmp_path / "b") in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_a_damaged_part(tmp_path: Path) -> None:
    parts = [part(tmp_path / "a", [0, 1]), part(tmp_path / "b", [2, 3])]
    file = tmp_path / "b" / made_store.specs()[1].path / "embedding/c/2/0"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        merge(parts, tmp_path / "c")
    file.unlink()
    with pytest.raises(StoreError, match="is missing"):
        merge(parts, tmp_path / "c")


def test_other_plans_end_to_end(tmp_path: Path) -> None:
    second = made_store.content(45, rejected=(2, 44), seed=1)
    third = made_store.content(9, seed=2)
    folders = [
        made_store.make_store(tmp_path / str(n), one, made_store.specs("uint8"), shard_rows=rows)
        for n, (one, rows) in enumerate([(MADE, 32), (second, 16), (third, 32)])
    ]
    found = merge(folders, tmp_path / "c")
    assert (found.how, found.rows, found.dropped) == ("concatenated", 154, 0)
    reader = StoreReader(tmp_path / "c")
    numpy.testing.assert_array_equal(
        reader.rows["key"], pandas.concat([MADE.rows["key"], second.rows["key"], third.rows["key"]])
    )
    assert list(numpy.flatnonzero(reader.rows["status"] == "rejected")) == [3, 64, 99, 102, 144]
    for kind in ("spectrogram", "embedding"):
        parts = [StoreReader(folder) for folder in folders]
        wanted = [p.read_shard(s, (kind,))[kind] for p in parts for s in range(p.meta.shards)]
        got = [reader.read_shard(shard, (kind,))[kind] for shard in range(reader.meta.shards)]
        numpy.testing.assert_array_equal(numpy.concatenate(got), numpy.concatenate(wanted))
    assert verify(tmp_path / "c").sound


def test_a_window_twice_is_kept_once(tmp_path: Path) -> None:
    shared = made_store.content(40)
    more = made_store.content(70)
    more.rows["start_seconds"] += 1  # another plan, whose first 70 keys are those of the first store
    folders = [made_store.make_store(tmp_path / "a", shared), made_store.make_store(tmp_path / "b", more)]
    found = merge(folders, tmp_path / "c")
    assert (found.rows, found.dropped) == (70, 40)
    assert StoreReader(tmp_path / "c").rows["key"].is_unique


def test_a_window_in_two_splits(tmp_path: Path) -> None:
    leaking = made_store.content(40)
    leaking.rows["split"] = "validation"
    folders = [
        made_store.make_store(tmp_path / "a", made_store.content(40)),
        made_store.make_store(tmp_path / "b", leaking),
    ]
    with pytest.raises(StoreError, match="32 windows are in different splits"):
        merge(folders, tmp_path / "c")


def test_plans_with_other_teachers(tmp_path: Path) -> None:
    first = made_store.make_store(tmp_path / "a", MADE)
    arrays = (made_store.specs()[0], embedding_spec("linear", "9" * 64, made_store.DIM))
    second = made_store.make_store(tmp_path / "b", made_store.content(40, seed=1), arrays)
    with pytest.raises(DigestMismatchError) as caught:
        merge([first, second], tmp_path / "c")
    assert "9" * 64 in str(caught.value)
    assert made_store.TEACHER_DIGEST in str(caught.value)


def test_a_forged_record_is_no_way_in(tmp_path: Path) -> None:
    """Two shards exchanged together with their records: the records name other rows."""
    parts = [part(tmp_path / "a", [0, 1]), part(tmp_path / "b", [2, 3])]
    spec = made_store.specs()[1]
    one, two = (commit_path(tmp_path / "a", spec, shard) for shard in (0, 1))
    first, second = json.loads(one.read_text()), json.loads(two.read_text())
    one.write_text(json.dumps({**second, "shard": 0}))
    two.write_text(json.dumps({**first, "shard": 1}))
    with pytest.raises(StoreError, match="belongs to other rows"):
        merge(parts, tmp_path / "c")


def test_what_is_no_merge(tmp_path: Path) -> None:
    first = made_store.make_store(tmp_path / "a", MADE)
    with pytest.raises(StoreError, match="one store alone"):
        merge([first], tmp_path / "c")
    with pytest.raises(StoreError, match="a place of its own"):
        merge([first, tmp_path / "b"], first)
