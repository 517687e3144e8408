"""Bugs found in the store while it was built; each test fails without its fix."""

from __future__ import annotations

from pathlib import Path

import numpy
import pandas

from pipeline.store.reader import StoreReader
from pipeline.store.schema import embedding_spec
from pipeline.store.verification import verify
from pipeline.store.writer import StoreWriter
from tests.store import made_store


def test_a_shard_of_rejects_alone_has_its_file(tmp_path: Path) -> None:
    """Zarr leaves out chunks that equal the fill value, so such a shard looked like a lost one."""
    made = made_store.content(40, rejected=tuple(range(16, 32)))
    folder = made_store.make_store(tmp_path / "s", made, shard_rows=16)
    assert verify(folder).sound
    assert numpy.isnan(StoreReader(folder).read_shard(1)["spectrogram"]).all()


def test_a_reject_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """Pandas cannot hold the lone surrogates of such a name; the writer crashed on it."""
    made = made_store.content(40)
    with StoreWriter.create(tmp_path / "s", made.rows, made_store.meta(made_store.specs(), 40, 8)) as writer:
        arrays = {spec.path: numpy.ones((40, *spec.row_shape)) for spec in writer.meta.arrays}
        reject = {"row": 3, "path": "b/\udcff.wav", "reason": "empty", "problem": "0 bytes"}
        writer.write_shard(0, arrays, [reject])
        writer.finish(config={}, inputs={})
    assert StoreReader(tmp_path / "s").rejects["path"].tolist() == ["b/\\xff.wav"]


def test_a_kill_between_two_commits_of_a_shard_does_not_show(tmp_path: Path) -> None:
    """The array written after the resume did not know what the other one had rejected."""
    made = made_store.content(40)
    meta = made_store.meta(made_store.specs(), 40, 8)
    spectrogram, embedding = meta.arrays
    values = {spectrogram.path: made.log_mel, embedding.path: made.embedding}
    rejects = [{"row": 3, "reason": "non_finite_spectrogram", "problem": "inf"}]
    with StoreWriter.create(tmp_path / "together", made.rows, meta) as writer:
        writer.write_shard(0, values, rejects)
        writer.finish(config={}, inputs={})
    with StoreWriter.create(tmp_path / "apart", made.rows, meta) as writer:
        writer.write_shard(0, {spectrogram.path: made.log_mel}, rejects)
        writer.write_shard(0, {embedding.path: made.embedding})
        writer.finish(config={}, inputs={})
    assert made_store.file_bytes(tmp_path / "apart") == made_store.file_bytes(tmp_path / "together")


def test_a_teacher_given_up_does_not_hold_up_the_store(tmp_path: Path) -> None:
    """One shard of a second teacher, then never more: the first teacher's store could not be finished."""
    made = made_store.content(40)
    folder = made_store.make_store(tmp_path / "s", made)
    second = embedding_spec("second", "ef" * 32, 3)
    with StoreWriter.create(
        folder, made.rows, made_store.meta((*made_store.specs(), second), 32, 8)
    ) as writer:
        writer.write_shard(0, {second.path: numpy.ones((32, 3))})
        writer.finish([made_store.TEACHER_DIGEST], config={}, inputs={})
    assert StoreReader(folder).embedding.name == "linear"
    assert verify(folder).sound


def test_missing_text_does_not_change_the_plans_digest(tmp_path: Path) -> None:
    """None becomes NaN in parquet and back; the digest of the plan must be of what is read again."""
    made = made_store.content(40)
    rows = made.rows.assign(label=pandas.Series([None] * 40, dtype=object))
    meta = made_store.meta(made_store.specs(), 32, 8)
    StoreWriter.create(tmp_path / "s", rows, meta).close()
    StoreWriter.create(tmp_path / "s", rows, meta).close()
