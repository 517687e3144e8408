"""A store below s3://: the same bytes as a folder's, whatever the network does."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

pytest.importorskip("obstore", reason="obstore is not installed (the extra s3)")
pytest.importorskip("moto.server", reason="moto, a local S3 server, is not installed (group test)")

from pipeline.errors import MissingArtifactError, StoreError
from pipeline.store import object_store
from pipeline.store.hdf5_file import export_hdf5, import_hdf5
from pipeline.store.merge import merge
from pipeline.store.object_store import ObjectPrefix
from pipeline.store.reader import StoreReader
from pipeline.store.schema import read_meta
from pipeline.store.verification import repair, verify
from pipeline.store.writer import StoreWriter
from tests.store import every_kind, made_store, s3_server

FAULTS = ("500", "lost", "cut", "500", "slow")
MADE = made_store.content(45, every_kind.REJECTED)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def proxy() -> Iterator[s3_server.FaultyProxy]:
    with s3_server.running() as served:
        yield served


@pytest.fixture
def prefix(proxy: s3_server.FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(object_store, "FIRST_PAUSE_SECONDS", 0.001)
    yield f"stores/number-{next(_numbers)}"
    proxy.faults = ()


def url(prefix: str) -> str:
    return f"s3://{s3_server.BUCKET}/{prefix}"


def write_every_kind(place: str) -> None:
    every_kind.make_store(place, 32)


@pytest.mark.exhaustive
def test_the_same_bytes_as_in_a_folder(prefix: str, tmp_path: Path) -> None:
    every_kind.make_store(tmp_path / "s", 32)
    write_every_kind(url(prefix))
    assert s3_server.objects(prefix) == made_store.file_bytes(tmp_path / "s")
    local, remote = StoreReader(tmp_path / "s"), StoreReader(url(prefix))
    assert remote.rows.equals(local.rows)
    for spec in local.meta.arrays:
        for shard in range(local.meta.shards):
            numpy.testing.assert_array_equal(
                remote.read_array(spec, shard), local.read_array(spec, shard), strict=True
            )
    assert verify(url(prefix)).sound


@pytest.mark.exhaustive
def test_the_same_bytes_over_a_bad_network(proxy: s3_server.FaultyProxy, prefix: str, tmp_path: Path) -> None:
    every_kind.make_store(tmp_path / "s", 32)
    proxy.injected.clear()
    proxy.faults, proxy.every = FAULTS, 7
    write_every_kind(url(prefix))
    assert all(proxy.injected[fault] > 0 for fault in FAULTS)
    assert verify(url(prefix)).sound
    proxy.faults = ()
    assert s3_server.objects(prefix) == made_store.file_bytes(tmp_path / "s")


def test_a_network_that_never_works(
    proxy: s3_server.FaultyProxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "ATTEMPTS", 3)
    proxy.requests.clear()
    proxy.faults, proxy.every = ("500",), 1
    with pytest.raises(StoreError, match="3 requests failed"):
        ObjectPrefix(url(prefix)).write("x", b"1")
    assert proxy.requests["PUT"] == 3


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(object_store, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(object_store.time, "sleep", slept.append)
    for attempt in range(8):
        object_store._pause(attempt)
    for attempt, pause in enumerate(slept):
        longest = min(10.0, 0.1 * 2**attempt)
        assert longest / 2 <= pause <= longest


def test_resume_and_two_writers(prefix: str, tmp_path: Path) -> None:
    whole = made_store.make_store(tmp_path / "whole", MADE, shard_rows=16)
    meta = made_store.meta(made_store.specs(), 16, 8)
    with StoreWriter.create(url(prefix), MADE.rows, meta) as writer:
        assert writer.pending() == [0, 1, 2]
        made_store.write_pending(writer, MADE, [1])
    with StoreWriter.open(url(prefix)) as writer:
        assert writer.pending() == [0, 2]
        assert writer.pending(rank=0, world=2) == [0, 2]
        assert writer.pending(rank=1, world=2) == []
        writers = [
            threading.Thread(target=made_store.write_pending, args=(StoreWriter.open(url(prefix)), MADE))
            for _ in range(2)
        ]
        for one in writers:
            one.start()
        for one in writers:
            one.join()
        assert writer.pending() == []
        writer.finish(config={}, inputs={})
    assert s3_server.objects(prefix) == made_store.file_bytes(whole)


def test_two_recipes_add_their_arrays_at_once(prefix: str) -> None:
    """store.json is read, changed and put back only if nobody else put one meanwhile."""
    spectrogram, embedding = made_store.specs()
    others = [embedding.model_copy(update={"digest": f"{n}" * 64, "name": f"t{n}"}) for n in range(5)]
    StoreWriter.create(url(prefix), MADE.rows, made_store.meta((spectrogram,), 16, 8)).close()
    threads = [
        threading.Thread(
            target=StoreWriter.create, args=(url(prefix), MADE.rows, made_store.meta((one,), 16, 8))
        )
        for one in others
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {spec.name for spec in read_meta(url(prefix)).arrays} == {"log_mel", "t0", "t1", "t2", "t3", "t4"}


def test_damage_is_found_and_mended(prefix: str) -> None:
    made_store.make_store(url(prefix), MADE, shard_rows=16)  # type: ignore[arg-type]
    before = s3_server.objects(prefix)
    spec = made_store.specs()[1]
    location = ObjectPrefix(url(prefix))
    name = f"{spec.path}/embedding/c/1/0"
    location.write(name, location.read(name)[:-1] + b"?")
    location.remove(f"{spec.path}/embedding/c/0/0")
    found = verify(url(prefix))
    assert {(one.code, one.shard) for one in found.problems} == {("damaged_shard", 1), ("missing_shard", 0)}
    with pytest.raises(StoreError, match="is missing"):
        StoreReader(url(prefix)).read_shard(0)
    assert repair(url(prefix), found) == [(spec.path, 0), (spec.path, 1)]
    with pytest.raises(MissingArtifactError):
        StoreReader(url(prefix))
    with StoreWriter.open(url(prefix)) as writer:
        assert writer.pending() == [0, 1]
        made_store.write_pending(writer, MADE)
        writer.finish(config={}, inputs={})
    assert s3_server.objects(prefix) == before


def test_merge_export_and_import(prefix: str, tmp_path: Path) -> None:
    whole = made_store.make_store(tmp_path / "whole", MADE, shard_rows=16)
    meta = made_store.meta(made_store.specs(), 16, 8)
    for number, shards in enumerate(([0], [1, 2])):
        place = tmp_path / "part" if number else f"{url(prefix)}/part"
        with StoreWriter.create(place, MADE.rows, meta) as writer:
            made_store.write_pending(writer, MADE, shards)
    merge([f"{url(prefix)}/part", tmp_path / "part"], f"{url(prefix)}/merged")
    assert s3_server.objects(f"{prefix}/merged") == made_store.file_bytes(whole)
    export_hdf5(f"{url(prefix)}/merged", tmp_path / "store.h5")
    import_hdf5(tmp_path / "store.h5", f"{url(prefix)}/imported")
    assert s3_server.objects(f"{prefix}/imported") == made_store.file_bytes(whole)
    assert StoreReader(f"{url(prefix)}/imported").digest == StoreReader(f"{url(prefix)}/merged").digest


def test_what_is_not_there(prefix: str) -> None:
    with pytest.raises(MissingArtifactError, match="no finished artifact in s3://"):
        StoreReader(url(prefix))
    with pytest.raises(StoreError, match="no such kind of place"):
        StoreReader("gs://bucket/prefix")
    with pytest.raises(StoreError, match="no object store there"):
        ObjectPrefix("s3://")
