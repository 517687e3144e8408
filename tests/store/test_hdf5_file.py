"""A store through one HDF5 file and back: equal byte for byte; what is hostile or tampered with is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy
import pytest

from pipeline.errors import Hdf5Error, StoreError
from pipeline.store.hdf5_file import export_hdf5, import_hdf5
from pipeline.store.reader import StoreReader
from pipeline.store.verification import verify
from tests.store import every_kind, made_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return every_kind.make_store(tmp_path_factory.mktemp("hdf5") / "s")


@pytest.fixture
def exported(store: Path, tmp_path: Path) -> Path:
    export_hdf5(store, tmp_path / "store.h5")
    return tmp_path / "store.h5"


def test_there_and_back(store: Path, exported: Path, tmp_path: Path) -> None:
    marker = import_hdf5(exported, tmp_path / "back")
    assert marker == StoreReader(tmp_path / "back").artifact
    assert made_store.file_bytes(tmp_path / "back") == made_store.file_bytes(store)
    assert (tmp_path / "back/artifact.json").read_bytes() == (store / "artifact.json").read_bytes()
    assert verify(tmp_path / "back").sound


def test_plain_h5py_reads_it(store: Path, exported: Path) -> None:
    reader = StoreReader(store)
    with h5py.File(exported) as file:
        for spec in reader.meta.arrays:
            parts = [reader.read_members(spec, shard) for shard in range(reader.meta.shards)]
            for member in parts[0]:
                wanted = numpy.concatenate([part[member] for part in parts])
                found = file[f"{spec.kind}.{spec.digest[:12]}.{member}"]
                numpy.testing.assert_array_equal(found[:], wanted)
                assert found.dtype == wanted.dtype


def dataset(file: h5py.File, part: str) -> str:
    return next(name for name in file if name.startswith(part) and not name.endswith(".commits"))


def change_a_value(file: h5py.File) -> None:
    file[dataset(file, "frames")][7, 1, 2] += 1


def swap_two_rows(file: h5py.File) -> None:
    found = file[dataset(file, "embedding")]
    found[0:2] = found[0:2][::-1]


def swap_two_shards(file: h5py.File) -> None:
    found = file[dataset(file, "spectrogram")]
    first, second = found[0:16], found[16:32]
    found[0:16], found[16:32] = second, first


def cut_the_commits(file: h5py.File) -> None:
    name = next(name for name in file if name.endswith(".commits"))
    content = file[name][:-300]
    del file[name]
    file[name] = content


def other_rows(file: h5py.File) -> None:
    content = bytes(file["files.store.json"][:]).replace(b'"rows_digest": "', b'"rows_digest": "0')
    del file["files.store.json"]
    file["files.store.json"] = numpy.frombuffer(content, dtype=numpy.uint8)


def another_marker(file: h5py.File) -> None:
    del file["files.artifact.json"]
    file["files.artifact.json"] = numpy.frombuffer(b"[]", dtype=numpy.uint8)


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (change_a_value, "changed after it was written"),
        (swap_two_rows, "changed after it was written"),
        (swap_two_shards, "changed after it was written"),
        (cut_the_commits, "commit record"),
        (other_rows, "not the plan"),
        (another_marker, "not_finished"),
    ],
)
def test_what_was_tampered_with(
    exported: Path, tmp_path: Path, tamper: Callable[[h5py.File], None], problem: str
) -> None:
    with h5py.File(exported, "a") as file:
        tamper(file)
    with pytest.raises(StoreError, match=problem):
        import_hdf5(exported, tmp_path / "back")
    assert not (tmp_path / "back/artifact.json").exists()


def never_written(file: h5py.File) -> None:
    name = dataset(file, "embedding")
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape=shape, dtype=kind, chunks=(1, *shape[1:]))
    file[name][0] = 1


def absurd_rows(file: h5py.File) -> None:
    name = dataset(file, "embedding")
    kind = file[name].dtype
    del file[name]
    file.create_dataset(name, shape=(1 << 40, 7), dtype=kind, chunks=(8, 7))


def absurd_description(file: h5py.File) -> None:
    content = bytes(file["files.store.json"][:]).replace(b'"shard_rows": 16', b'"shard_rows": 99999999999')
    content = content.replace(b'"rows": 45', b'"rows": 99999999999')
    del file["files.store.json"]
    file["files.store.json"] = numpy.frombuffer(content, dtype=numpy.uint8)


def linked(file: h5py.File) -> None:
    name = dataset(file, "embedding")
    del file[name]
    file[name] = h5py.ExternalLink("other.h5", "/x")


def packed(file: h5py.File) -> None:
    name = dataset(file, "embedding")
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, data=numpy.zeros(shape, kind), compression="gzip")


@pytest.mark.parametrize(
    ("attack", "problem"),
    [
        (never_written, "holds less than it claims"),
        (absurd_rows, "claims|rows"),
        (absurd_description, "a shard of .* would be"),
        (linked, "external link"),
        (packed, "holds less than it claims"),
    ],
)
def test_what_is_absurd_is_refused_before_anything_is_written(
    exported: Path, tmp_path: Path, attack: Callable[[h5py.File], None], problem: str
) -> None:
    with h5py.File(exported, "a") as file:
        attack(file)
    with pytest.raises(Hdf5Error, match=problem):
        import_hdf5(exported, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_other_files_and_places_in_use(store: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(Hdf5Error, match="no whole HDF5 file"):
        import_hdf5(tmp_path / "text.h5", tmp_path / "back")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["waveform"] = numpy.zeros(3)
    with pytest.raises(Hdf5Error, match="format is missing"):
        import_hdf5(tmp_path / "other.h5", tmp_path / "back")
    with pytest.raises(StoreError, match="not empty"):
        import_hdf5(exported, store)
    with pytest.raises(StoreError, match="there already"):
        export_hdf5(store, tmp_path)
    assert exported.is_file()


def test_a_damaged_store_is_not_exported(store: Path, tmp_path: Path) -> None:
    copy = every_kind.make_store(tmp_path / "copy")
    file = next((copy / "logits").rglob("c/1/0"))
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="not what its commit record says"):
        export_hdf5(copy, tmp_path / "store.h5")
    assert not (tmp_path / "store.h5").exists()
