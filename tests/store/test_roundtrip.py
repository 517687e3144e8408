"""What is written comes back, whoever reads it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from pipeline.errors import DigestMismatchError, StoreError
from pipeline.store import zarr_layout
from pipeline.store.reader import StoreReader
from pipeline.store.shard_file import PlainShards
from pipeline.store.writer import StoreWriter
from tests.store import every_kind, made_store


def expected(values: numpy.ndarray, rejected: tuple[int, ...]) -> numpy.ndarray:
    wanted = values.copy()
    wanted[list(rejected)] = numpy.nan
    return wanted


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 70),
    chunk_rows=st.integers(1, 9),
    chunks_per_shard=st.integers(1, 5),
    data=st.data(),
)
def test_any_size_comes_back(rows: int, chunk_rows: int, chunks_per_shard: int, data: st.DataObject) -> None:
    rejected = tuple(sorted(data.draw(st.sets(st.integers(0, rows - 1), max_size=rows))))
    made = made_store.content(rows, rejected)
    with tempfile.TemporaryDirectory() as scratch:
        folder = made_store.make_store(
            Path(scratch) / "s", made, shard_rows=chunk_rows * chunks_per_shard, chunk_rows=chunk_rows
        )
        reader = StoreReader(folder)
        assert sum(reader.shard_sizes) == rows
        parts = [reader.read_shard(shard) for shard in range(len(reader.shard_sizes))]
        for kind, values in (("spectrogram", made.log_mel), ("embedding", made.embedding)):
            found = numpy.concatenate([part[kind] for part in parts])
            assert found.dtype == values.dtype
            numpy.testing.assert_array_equal(found, expected(values, rejected))
        assert list(reader.rows.index[reader.rows["status"] == "rejected"]) == list(rejected)
        assert list(reader.rejects["row"]) == list(rejected)


def test_plain_zarr_opens_it(tmp_path: Path) -> None:
    made = made_store.content(45, rejected=(3,))
    folder = made_store.make_store(tmp_path / "s", made)
    reader = StoreReader(folder)
    for spec, values in ((reader.spectrogram, made.log_mel), (reader.embedding, made.embedding)):
        group = zarr.open_group(folder / spec.path, mode="r")
        assert group.attrs["ossicle"]["digest"] == spec.digest  # type: ignore[index]
        numpy.testing.assert_array_equal(group[spec.data_name][:], expected(values, (3,)))
        assert group[spec.data_name].metadata.zarr_format == 3


def members_of_every_kind(folder: Path) -> Iterator[tuple[Path, numpy.ndarray]]:
    """Yield each member's folder and what StoreReader reads of it, all shards."""
    reader = StoreReader(every_kind.make_store(folder))
    for spec in reader.meta.arrays:
        shards = [reader.read_members(spec, shard) for shard in range(reader.meta.shards)]
        for name in shards[0]:
            yield folder / spec.path / name, numpy.concatenate([shard[name] for shard in shards])


def same_bits(found: numpy.ndarray, wanted: numpy.ndarray) -> bool:
    """Whether every bit is equal, NaN's included."""
    return found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


def test_tensorstore_reads_every_kind_bit_equal(tmp_path: Path) -> None:
    tensorstore = pytest.importorskip(
        "tensorstore", reason="tensorstore, a second Zarr reader, is not installed"
    )
    read = 0
    for path, wanted in members_of_every_kind(tmp_path / "s"):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
        assert same_bits(tensorstore.open(spec).result().read().result(), wanted), path
        read += 1
    assert read == 12


@pytest.mark.parametrize("pipeline", [zarr_layout.OWN_PIPELINE, zarr_layout.FAST_PIPELINE])
def test_both_codec_pipelines_read_every_kind_bit_equal(tmp_path: Path, pipeline: str) -> None:
    if pipeline == zarr_layout.FAST_PIPELINE:
        pytest.importorskip("zarrs", reason="zarrs, a second Zarr reader, is not installed (the extra speed)")
    for path, wanted in members_of_every_kind(tmp_path / "s"):
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = zarr.open_array(path, mode="r", zarr_format=3)
        assert type(array._async_array.codec_pipeline).__name__ == pipeline.rsplit(".")[-1]
        assert same_bits(numpy.asarray(array[:]), wanted), path


def test_every_kind_comes_back_as_it_was_cast(tmp_path: Path) -> None:
    reader = StoreReader(every_kind.make_store(tmp_path / "s"))
    for spec in every_kind.specs():
        exact = every_kind.values()[spec.path]
        found = numpy.concatenate([reader.read_array(spec, shard) for shard in range(reader.meta.shards)])
        assert numpy.isnan(found[list(every_kind.REJECTED)]).all()
        good = [row for row in range(every_kind.ROWS) if row not in every_kind.REJECTED]
        if spec.top_k is not None:
            for row in good:
                largest = numpy.argsort(-exact[row])[: every_kind.TOP_K]
                numpy.testing.assert_array_equal(found[row, largest], exact[row, largest])
                assert len(set(numpy.delete(found[row], largest))) == 1
                assert logsumexp(found[row]) == pytest.approx(logsumexp(exact[row]), rel=1e-5)
        elif spec.dtype != "uint8":
            numpy.testing.assert_array_equal(found[good], exact[good].astype(spec.dtype))
    lost = reader.artifact.summary["arrays"][next(s.path for s in every_kind.specs() if s.top_k)]["lost_mass"]
    exact = every_kind.values()[next(s.path for s in every_kind.specs() if s.top_k)][good].astype(float)
    dropped = 1 - numpy.sort(softmax(exact, axis=1), axis=1)[:, -every_kind.TOP_K :].sum(axis=1)
    assert lost == pytest.approx({"mean": dropped.mean(), "largest": dropped.max()}, rel=1e-5)


def test_an_array_is_named_by_teacher_and_output(tmp_path: Path) -> None:
    folder = every_kind.make_store(tmp_path / "s")
    specs = every_kind.specs()
    by_path = {spec.path: spec for spec in specs}
    assert len(by_path) == len(specs)
    for name, wanted in (("linear", specs[1]), ("linear:layer.2", specs[6]), ("linear:layer.0", specs[7])):
        assert StoreReader(folder, teacher=name).embedding == wanted
        assert StoreReader(folder, teacher=wanted.digest[:12]).embedding == wanted
    assert specs[1].digest == made_store.TEACHER_DIGEST  # an embedding's digest is its teacher's, as ever
    with pytest.raises(StoreError, match="2 embedding arrays fit"):
        StoreReader(folder, teacher="linear:logits")
    assert StoreReader(folder, teacher=specs[4].digest).embedding.top_k == every_kind.TOP_K
    with pytest.raises(DigestMismatchError, match=r"no embedding array for linear:layer\.1"):
        StoreReader(folder, teacher="linear:layer.1")


def test_read_directly_by_zarrs_and_by_zarr_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_store.content(45, rejected=(3,))
    folder = made_store.make_store(tmp_path / "s", made)
    direct = StoreReader(folder)
    wanted = direct.read_shard(1)
    assert isinstance(direct._open(direct.spectrogram, "log_mel"), PlainShards)
    monkeypatch.setattr(PlainShards, "of", lambda description: None)
    for installed, pipeline in ((True, "ZarrsCodecPipeline"), (False, "BatchedCodecPipeline")):
        if installed and not zarr_layout.fast_pipeline_installed():
            continue
        with monkeypatch.context() as patch:
            patch.setattr(zarr_layout, "fast_pipeline_installed", lambda installed=installed: installed)
            reader = StoreReader(folder)
            for kind, values in reader.read_shard(1).items():
                numpy.testing.assert_array_equal(values, wanted[kind])
            array = reader._open(reader.spectrogram, "log_mel")
            assert type(array._async_array.codec_pipeline).__name__ == pipeline


def test_reading_leaves_zarrs_configuration_alone(tmp_path: Path) -> None:
    before = zarr.config.get("codec_pipeline.path")
    StoreReader(made_store.make_store(tmp_path / "s", made_store.content(9))).read_shard(0)
    assert zarr.config.get("codec_pipeline.path") == before


def test_uint8_is_within_half_a_step_of_each_row(tmp_path: Path) -> None:
    made = made_store.content(45, rejected=(3,))
    folder = made_store.make_store(tmp_path / "s", made, made_store.specs("uint8", "float16"))
    reader = StoreReader(folder)
    wanted = made.log_mel.astype(numpy.float64)
    step = (wanted.max(axis=(1, 2)) - wanted.min(axis=(1, 2))) / 255
    found = numpy.concatenate([reader.read_shard(shard)["spectrogram"] for shard in range(2)])
    assert found.dtype == numpy.float16
    assert numpy.isnan(found[3]).all()
    kept = [row for row in range(45) if row != 3]
    error = numpy.abs(found[kept].astype(numpy.float64) - wanted[kept]).max(axis=(1, 2))
    rounding = numpy.spacing(numpy.abs(made.log_mel[kept]).max(axis=(1, 2)))  # of float16, at the end
    assert (error <= step[kept] / 2 + rounding).all()
    embedding = numpy.concatenate([reader.read_shard(shard)["embedding"] for shard in range(2)])
    numpy.testing.assert_array_equal(embedding[kept], made.embedding[kept].astype(numpy.float16))


def test_constant_rows_survive_uint8(tmp_path: Path) -> None:
    made = made_store.content(9)
    made.log_mel[4] = -11.5
    folder = made_store.make_store(tmp_path / "s", made, made_store.specs("uint8"))
    assert (StoreReader(folder).read_shard(0)["spectrogram"][4] == -11.5).all()


def test_order_of_writing_does_not_show(tmp_path: Path) -> None:
    made = made_store.content(100, rejected=(3, 64, 99))
    forward = made_store.make_store(tmp_path / "a", made)
    with StoreWriter.create(tmp_path / "b", made.rows, made_store.meta(made_store.specs(), 32, 8)) as writer:
        for shard in (3, 1, 0, 2):
            start, stop = writer.meta.bounds(shard)
            for spec in reversed(writer.meta.arrays):
                values = {"spectrogram": made.log_mel, "embedding": made.embedding}[spec.kind][start:stop]
                writer.write_shard(shard, {spec.path: values}, made.rejects(start, stop))
        writer.finish(config={}, inputs={})
    assert made_store.file_bytes(tmp_path / "b") == made_store.file_bytes(forward)


def test_processes_that_race_for_the_same_shards(tmp_path: Path) -> None:
    made = made_store.content(200, rejected=(3, 199))
    alone = made_store.make_store(tmp_path / "alone", made, shard_rows=16)
    folder = tmp_path / "shared"
    StoreWriter.create(folder, made.rows, made_store.meta(made_store.specs(), 16, 8)).close()
    script = (
        "from tests.store import made_store; from pipeline.store.writer import StoreWriter\n"
        "import pathlib, random, sys\n"
        "writer = StoreWriter.open(pathlib.Path(sys.argv[1]))\n"
        "shards = list(range(13)); random.Random(int(sys.argv[2])).shuffle(shards)\n"
        "made_store.write_pending(writer, made_store.content(200, rejected=(3, 199)), shards)\n"
    )
    top = Path(__file__).resolve().parents[2]
    racing = [
        subprocess.Popen([sys.executable, "-c", script, str(folder), str(n)], cwd=top) for n in range(3)
    ]
    assert [process.wait() for process in racing] == [0, 0, 0]
    with StoreWriter.open(folder) as writer:
        assert writer.pending() == []
        writer.finish(config={}, inputs={})
    assert made_store.file_bytes(folder) == made_store.file_bytes(alone)
