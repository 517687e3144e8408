"""Damage of every kind is found, named, and mended by writing the shard again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import zarr

from pipeline.errors import MissingArtifactError, StoreError
from pipeline.store import tables
from pipeline.store.commits import commit_path
from pipeline.store.reader import StoreReader
from pipeline.store.schema import CLIPS_FILE, STORE_FILE
from pipeline.store.verification import repair, verify
from pipeline.store.writer import StoreWriter
from tests.store import made_store

MADE = made_store.content(100, rejected=(3, 99))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_store.make_store(tmp_path / "s", MADE)


def shard_path(folder: Path, shard: int) -> Path:
    return folder / made_store.specs()[0].path / f"log_mel/c/{shard}/0/0"


def flip_a_byte(folder: Path) -> None:
    data = bytearray(shard_path(folder, 2).read_bytes())
    data[len(data) // 2] ^= 1
    shard_path(folder, 2).write_bytes(data)


def truncate(folder: Path) -> None:
    shard_path(folder, 2).write_bytes(shard_path(folder, 2).read_bytes()[:-9])


def lose_a_shard(folder: Path) -> None:
    shard_path(folder, 2).unlink()


def lose_a_commit(folder: Path) -> None:
    commit_path(folder, made_store.specs()[0], 2).unlink()


def damage_a_commit(folder: Path) -> None:
    commit_path(folder, made_store.specs()[0], 2).write_text('{"array": ')


def commit_of_another_teacher(folder: Path) -> None:
    path = commit_path(folder, made_store.specs()[0], 2)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "array": "9" * 64}))


def swap_shards(folder: Path) -> None:
    one, two = shard_path(folder, 2).read_bytes(), shard_path(folder, 1).read_bytes()
    shard_path(folder, 2).write_bytes(two)
    shard_path(folder, 1).write_bytes(one)


def swap_shards_and_commits(folder: Path) -> None:
    swap_shards(folder)
    first, second = (commit_path(folder, made_store.specs()[0], shard) for shard in (1, 2))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


@pytest.mark.parametrize(
    ("damage", "code", "shards"),
    [
        (flip_a_byte, "damaged_shard", {2}),
        (truncate, "truncated_shard", {2}),
        (lose_a_shard, "missing_shard", {2}),
        (lose_a_commit, "not_committed", {2}),
        (damage_a_commit, "damaged_commit", {2}),
        (commit_of_another_teacher, "stale_digest", {2}),
        (swap_shards, "damaged_shard", {1, 2}),
        (swap_shards_and_commits, "moved_commit", {1, 2}),
    ],
)
def test_damage_is_found_and_mended(
    folder: Path, damage: Callable[[Path], None], code: str, shards: set[int]
) -> None:
    whole = made_store.file_bytes(folder)
    assert verify(folder).sound
    damage(folder)
    found = verify(folder)
    named = [problem for problem in found.problems if problem.shard is not None]
    assert {problem.code for problem in named} == {code}
    assert {problem.shard for problem in named} == shards
    assert repair(folder, found) == [(made_store.specs()[0].path, shard) for shard in sorted(shards)]
    with pytest.raises(MissingArtifactError):
        StoreReader(folder)
    with StoreWriter.open(folder) as writer:
        assert writer.pending() == sorted(shards)
        made_store.write_pending(writer, MADE)
        writer.finish(config={}, inputs={})
    assert verify(folder).sound
    assert made_store.file_bytes(folder) == whole


def test_every_byte_of_a_shard_is_covered(folder: Path) -> None:
    path = shard_path(folder, 3)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 12)):
        data = bytearray(whole)
        data[place] ^= 0x10
        path.write_bytes(data)
        assert [problem.code for problem in verify(folder).problems] == ["damaged_shard"]


def test_reading_a_flipped_byte_fails_too(folder: Path) -> None:
    flip_a_byte(folder)
    with pytest.raises(StoreError, match="cannot be read"):
        StoreReader(folder).read_shard(2)


def test_rows_swapped_in_the_plan(folder: Path) -> None:
    clips = tables.read(folder / CLIPS_FILE)
    keys = clips["key"].tolist()
    keys[40], keys[41] = keys[41], keys[40]
    (folder / CLIPS_FILE).write_bytes(tables.to_bytes(clips.assign(key=keys)))
    found = {(problem.code, problem.shard) for problem in verify(folder).problems}
    assert found == {("other_rows", None), ("other_rows", 1)}
    with pytest.raises(StoreError, match=CLIPS_FILE):
        repair(folder, verify(folder))


def test_a_status_that_no_commit_gives(folder: Path) -> None:
    clips = tables.read(folder / CLIPS_FILE)
    status = clips["status"].tolist()
    status[3], status[4] = "ok", "rejected"
    (folder / CLIPS_FILE).write_bytes(tables.to_bytes(clips.assign(status=status)))
    assert [problem.code for problem in verify(folder).problems] == ["wrong_status"]


def test_a_stale_frontend(folder: Path) -> None:
    described = (folder / STORE_FILE).read_text()
    (folder / STORE_FILE).write_text(described.replace('"n_fft": 512', '"n_fft": 1024'))
    assert "stale_digest" in {problem.code for problem in verify(folder).problems}


def test_an_array_of_another_teacher(folder: Path) -> None:
    spec = made_store.specs()[1]
    group = zarr.open_group(folder / spec.path, mode="r+")
    group.attrs["ossicle"] = {**group.attrs.asdict()["ossicle"], "digest": "9" * 64}  # type: ignore[dict-item]
    assert [problem.code for problem in verify(folder).problems] == ["stale_digest"]
    with pytest.raises(StoreError, match="another array") as caught:
        StoreReader(folder).read_shard(0)
    assert "9" * 64 in str(caught.value)
    assert spec.digest in str(caught.value)


def test_values_that_a_forged_commit_covers(folder: Path) -> None:
    """A record made to fit a shard of NaN: the checksum holds, the values do not."""
    from hashlib import sha256

    from pipeline.store.zarr_layout import ShardEncoder, shard_file

    spec = made_store.specs()[1]
    values = MADE.embedding[32:64].copy()
    values[5] = numpy.nan
    data = ShardEncoder((folder / spec.path / "embedding/zarr.json").read_bytes()).encode(1, 32, values)
    file = shard_file(spec, "embedding", 1)
    (folder / file).write_bytes(data)
    path = commit_path(folder, spec, 1)
    record = json.loads(path.read_text())
    record["files"] = {file: {"bytes": len(data), "sha256": sha256(data).hexdigest()}}
    path.write_text(json.dumps(record))
    assert [problem.code for problem in verify(folder).problems] == ["wrong_values"]


def test_a_stray_file_and_no_marker(folder: Path) -> None:
    stray = folder / made_store.specs()[1].path / "embedding/c/9/0"
    stray.parent.mkdir()
    stray.write_bytes(b"?")
    assert [problem.code for problem in verify(folder).problems] == ["stray_file"]
    stray.unlink()
    (folder / "artifact.json").unlink()
    assert [problem.code for problem in verify(folder).problems] == ["not_finished"]


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError):
        verify(tmp_path)
