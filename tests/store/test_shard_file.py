"""The direct shard reader gives what zarr gives, and refuses every damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from pipeline.store.shard_file import PlainShards

SHARD, CHUNK = 12, 4


def written(folder: Path, values: numpy.ndarray, **options: object) -> zarr.Array:
    """Write ``values`` with zarr's own codecs, in shards of 12 rows of chunks of 4 unless told otherwise."""
    array = zarr.create_array(
        folder,
        shape=values.shape,
        dtype=values.dtype,
        shards=(SHARD, *values.shape[1:]),
        chunks=(CHUNK, *values.shape[1:]),
        **{
            "filters": None,
            "serializer": BytesCodec(),
            "compressors": [Crc32cCodec()],
            "fill_value": 0,
            **options,
        },
    )
    array = array.with_config({"write_empty_chunks": True})
    array[...] = values
    return array


def file_of(folder: Path, shard: int, dimensions: int) -> Path:
    return folder / "/".join(["c", str(shard), *["0"] * (dimensions - 1)])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float16", "float32"])
@pytest.mark.parametrize("row_shape", [(), (3,), (2, 5)])
def test_every_row_as_zarr_reads_it(tmp_path: Path, dtype: str, row_shape: tuple[int, ...]) -> None:
    values = numpy.random.default_rng(0).integers(0, 200, (31, *row_shape)).astype(dtype)
    array = written(tmp_path / "a", values)
    plain = PlainShards.of((tmp_path / "a" / "zarr.json").read_bytes())
    assert plain is not None
    for shard in range(3):
        start, stop = shard * SHARD, min((shard + 1) * SHARD, 31)
        path = file_of(tmp_path / "a", shard, values.ndim)
        wanted = array[start:stop]
        for found in (plain.read(path, stop - start), plain.decode(path.read_bytes(), stop - start)):
            assert found.dtype == dtype
            numpy.testing.assert_array_equal(found, wanted)
        into = numpy.empty_like(wanted)
        assert plain.read(path, stop - start, into) is into
        numpy.testing.assert_array_equal(into, wanted)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float16", "float32"])
@pytest.mark.parametrize("row_shape", [(), (3,), (2, 5)])
@pytest.mark.parametrize("rows", [31, 24, 25, 3])
def test_bytes_are_those_that_zarr_writes(
    tmp_path: Path, dtype: str, row_shape: tuple[int, ...], rows: int
) -> None:
    values = numpy.random.default_rng(0).integers(0, 200, (rows, *row_shape)).astype(dtype)
    fill = float("nan") if dtype.startswith("float") else -1 if dtype.startswith("int") else 0
    if dtype.startswith("float"):
        values[2] = numpy.nan
    written(tmp_path / "a", values, fill_value=fill)
    plain = PlainShards.of((tmp_path / "a" / "zarr.json").read_bytes())
    assert plain is not None
    for shard in range(-(-rows // SHARD)):
        expected = file_of(tmp_path / "a", shard, values.ndim).read_bytes()
        assert plain.encode(values[shard * SHARD : (shard + 1) * SHARD]) == expected


def test_other_layouts_are_left_to_zarr(tmp_path: Path) -> None:
    values = numpy.zeros((24, 3), dtype=numpy.float32)
    written(tmp_path / "zstd", values, compressors=[ZstdCodec(), Crc32cCodec()])
    written(tmp_path / "big", values, serializer=BytesCodec(endian="big"))
    zarr.create_array(tmp_path / "flat", shape=values.shape, dtype="float32", chunks=(4, 3))
    start = ShardingCodec(
        chunk_shape=(4, 3), codecs=[BytesCodec(), Crc32cCodec()], index_location="start"
    )  # fmt: skip
    zarr.create_array(
        tmp_path / "start", shape=values.shape, dtype="float32", chunks=(12, 3), serializer=start,
        filters=None, compressors=None,
    )  # fmt: skip
    written(tmp_path / "split", numpy.zeros((24, 4), dtype=numpy.float32))
    split = json.loads((tmp_path / "split" / "zarr.json").read_text())
    split["codecs"][0]["configuration"]["chunk_shape"] = [4, 2]
    descriptions = [(tmp_path / name / "zarr.json").read_bytes() for name in ("zstd", "big", "flat", "start")]
    for description in (*descriptions, json.dumps(split).encode(), b"{", b"[]", b"\xff"):
        assert PlainShards.of(description) is None


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    values = numpy.arange(24, dtype=numpy.float32).reshape(12, 2)
    written(tmp_path / "a", values)
    plain = PlainShards.of((tmp_path / "a" / "zarr.json").read_bytes())
    assert plain is not None
    content = file_of(tmp_path / "a", 0, 2).read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        with pytest.raises(ValueError, match=r"checksum|lie within"):
            plain.decode(bytes(damaged), 12)


def test_cut_short_absent_or_read_into_something_else(tmp_path: Path) -> None:
    values = numpy.ones((12, 2), dtype=numpy.float32)
    written(tmp_path / "a", values)
    plain = PlainShards.of((tmp_path / "a" / "zarr.json").read_bytes())
    assert plain is not None
    path = file_of(tmp_path / "a", 0, 2)
    content = path.read_bytes()
    for length in (0, 3, 40, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"index|checksum"):
            plain.read(path, 12)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        plain.read(path, 12)
    with pytest.raises(ValueError, match="cannot read"):
        plain.decode(content, 12, numpy.empty((12, 2), dtype=numpy.float16))
    with pytest.raises(ValueError, match="cannot read"):
        plain.decode(content, 12, numpy.empty((11, 2), dtype=numpy.float32))
    path.write_bytes(content)
    array = zarr.open_array(tmp_path / "a", mode="r+")
    array.with_config({"write_empty_chunks": False})[4:8] = 0
    with pytest.raises(ValueError, match="chunk 1 is absent"):
        plain.read(path, 12)
