"""What writer and reader refuse, and that they say what to do."""

from __future__ import annotations

from pathlib import Path

import numpy
import pandas
import pytest

from pipeline.config import LogMelConfig
from pipeline.errors import DigestMismatchError, MissingArtifactError, StoreError
from pipeline.store.reader import StoreReader
from pipeline.store.schema import STORE_FILE, embedding_spec
from pipeline.store.tables import read, rejects_table, to_bytes
from pipeline.store.writer import StoreWriter
from tests.store import made_store


@pytest.fixture
def writer(tmp_path: Path) -> StoreWriter:
    made = made_store.content(40)
    return StoreWriter.create(tmp_path / "s", made.rows, made_store.meta(made_store.specs(), 32, 8))


def test_a_value_that_is_not_finite(writer: StoreWriter) -> None:
    made = made_store.content(40)
    made.embedding[7, 2] = numpy.inf
    with pytest.raises(StoreError, match="row 7"):
        made_store.write_pending(writer, made)
    assert writer.pending([made_store.TEACHER_DIGEST]) == [0, 1]


def test_a_value_too_large_for_float16(tmp_path: Path) -> None:
    made = made_store.content(40)
    made.embedding[39, 0] = 1e6
    writer = StoreWriter.create(
        tmp_path / "s", made.rows, made_store.meta(made_store.specs(embedding="float16"), 32, 8)
    )
    with pytest.raises(StoreError, match=r"row 39 .* float16"):
        made_store.write_pending(writer, made)


def test_a_wrong_shape(writer: StoreWriter) -> None:
    with pytest.raises(StoreError, match="wrong shape"):
        writer.write_shard(1, {writer.meta.arrays[1].path: numpy.zeros((32, made_store.DIM))})


@pytest.mark.parametrize("row", [31, 40])
def test_a_reject_outside_its_shard(writer: StoreWriter, row: int) -> None:
    with pytest.raises(StoreError, match="outside shard 1"):
        writer.write_shard(1, {}, [{"row": row, "reason": "x", "problem": "y"}])


def test_finishing_early(writer: StoreWriter) -> None:
    made_store.write_pending(writer, made_store.content(40), [1])
    with pytest.raises(StoreError, match="1 of 2 shards") as caught:
        writer.finish(config={}, inputs={})
    assert caught.value.run == "ossicle embed"
    with pytest.raises(MissingArtifactError):
        StoreReader(writer.folder)


def test_another_plan_or_manifest(writer: StoreWriter) -> None:
    other = made_store.content(40, seed=1).rows
    with pytest.raises(DigestMismatchError, match="window plan"):
        StoreWriter.create(writer.folder, other, writer.meta)
    manifest = writer.meta.model_copy(update={"manifest_digest": "ef" * 32})
    with pytest.raises(DigestMismatchError, match="manifest") as caught:
        StoreWriter.create(writer.folder, made_store.content(40).rows, manifest)
    assert "ef" * 32 in str(caught.value)
    assert "cd" * 32 in str(caught.value)


def test_the_same_array_in_another_form(writer: StoreWriter) -> None:
    other = writer.meta.model_copy(update={"arrays": made_store.specs("uint8")})
    with pytest.raises(StoreError, match="another form"):
        StoreWriter.create(writer.folder, made_store.content(40).rows, other)


@pytest.mark.parametrize("order", [[1, 0], [0, 2], []])
def test_a_plan_out_of_order(tmp_path: Path, order: list[int]) -> None:
    rows = pandas.DataFrame({"row": numpy.array(order, dtype=int), "key": [str(n) for n in order]})
    with pytest.raises(StoreError):
        StoreWriter.create(tmp_path / "s", rows, made_store.meta(made_store.specs(), 32, 8))


def test_a_second_teacher_stands_beside_the_first(tmp_path: Path) -> None:
    made = made_store.content(40, rejected=(2,))
    folder = made_store.make_store(tmp_path / "s", made)
    before = made_store.file_bytes(folder)
    second = embedding_spec("other", "ef" * 32, 3)
    meta = made_store.meta((*made_store.specs(), second), 32, 8)
    with StoreWriter.create(folder, made.rows, meta) as writer:
        with pytest.raises(MissingArtifactError):
            StoreReader(folder)
        assert writer.pending([made_store.TEACHER_DIGEST]) == []
        assert writer.pending(["ef" * 32]) == [0, 1]
        # The first teacher's store can be finished though the second was given up.
        writer.finish([made_store.TEACHER_DIGEST], config={}, inputs={})
        assert StoreReader(folder).embedding.name == "linear"
        for shard in (0, 1):
            start, stop = writer.meta.bounds(shard)
            rejects = [{"row": 33, "reason": "not_finite", "problem": "z"}] if shard else []
            writer.write_shard(shard, {second.path: numpy.ones((stop - start, 3))}, rejects)
        writer.finish(config={}, inputs={})
    with pytest.raises(StoreError, match="2 embedding arrays fit"):
        _ = StoreReader(folder).embedding
    assert StoreReader(folder, teacher="other").embedding.row_shape == (3,)
    assert StoreReader(folder).select(teacher="ef" * 6).embedding.name == "other"
    reader = StoreReader(folder, teacher="linear")
    assert list(reader.rejects["row"]) == [2, 33]
    assert numpy.flatnonzero(~reader.usable()).tolist() == [2, 33]
    after = made_store.file_bytes(folder)
    assert all(after[name] == data for name, data in before.items() if "/" in name)


def test_asking_for_what_is_not_there(tmp_path: Path) -> None:
    folder = made_store.make_store(tmp_path / "s", made_store.content(40))
    with pytest.raises(DigestMismatchError) as caught:
        StoreReader(folder, frontend=LogMelConfig(mels=7))
    assert StoreReader(folder).spectrogram.digest[:12] in str(caught.value)
    assert caught.value.run is not None
    with pytest.raises(DigestMismatchError, match="aisfx"):
        StoreReader(folder, teacher="aisfx")
    with pytest.raises(DigestMismatchError, match="manifest"):
        StoreReader(folder, manifest="00")
    with pytest.raises(StoreError, match="split 'test'"):
        StoreReader(folder).usable("test")
    with pytest.raises(StoreError, match="no shard 2"):
        StoreReader(folder).read_shard(2)


def test_a_missing_shard_is_no_reject(tmp_path: Path) -> None:
    folder = made_store.make_store(tmp_path / "s", made_store.content(40))
    (folder / StoreReader(folder).spectrogram.path / "log_mel/c/1/0/0").unlink()
    with pytest.raises(StoreError, match=r"shard 1 .* missing") as caught:
        StoreReader(folder).read_shard(1)
    assert "--repair" in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "not json", '{"schema_version": 1, "surprise": 2}'])
def test_a_damaged_description(tmp_path: Path, text: str) -> None:
    folder = made_store.make_store(tmp_path / "s", made_store.content(40))
    (folder / STORE_FILE).write_text(text)
    with pytest.raises(StoreError):
        StoreReader(folder)


def test_another_schema_version(tmp_path: Path) -> None:
    folder = made_store.make_store(tmp_path / "s", made_store.content(40))
    described = (folder / STORE_FILE).read_text().replace('"schema_version": 1', '"schema_version": 2')
    (folder / STORE_FILE).write_text(described)
    with pytest.raises(StoreError, match="another version"):
        StoreReader(folder)


def test_rejects_without_a_row_are_carried_on(tmp_path: Path) -> None:
    made = made_store.content(40, rejected=(39,))
    unread = [
        {"path": "b/\udcff.wav", "reason": "empty", "problem": "0 bytes"},
        {"path": "a.wav", "reason": "truncated", "problem": "x"},
    ]
    with StoreWriter.create(
        tmp_path / "s", made.rows, made_store.meta(made_store.specs(), 32, 8), unread
    ) as writer:
        made_store.write_pending(writer, made)
        for _ in range(2):
            writer.finish(config={}, inputs={})
    found = StoreReader(tmp_path / "s").rejects
    assert list(found.columns) == ["path", "clip_id", "row", "reason", "problem"]
    assert list(found["row"]) == [-1, -1, 39]
    assert list(found["path"]) == ["a.wav", "b/\\xff.wav", "clip39.wav"]


def test_tables_are_equal_bytes_and_come_back(tmp_path: Path) -> None:
    table = rejects_table(pandas.DataFrame({"row": [4, 2], "reason": ["a", None]}))
    (tmp_path / "t").write_bytes(to_bytes(table))
    assert to_bytes(read(tmp_path / "t")) == to_bytes(table)
    (tmp_path / "t").write_bytes(b"PAR1 but no")
    with pytest.raises(StoreError, match="cannot be read"):
        read(tmp_path / "t")
