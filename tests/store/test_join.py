"""Published logits become an array of a store: the right row each, and missing where the file has none."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import h5py
import numpy
import pandas
import pytest
from scipy.special import expit, logsumexp

from pipeline.errors import Hdf5Error, StoreError
from pipeline.store.combination import Combination
from pipeline.store.join import join
from pipeline.store.logits_files import NpyLogits, TopKHdf5Logits, clip_id
from pipeline.store.reader import StoreReader
from pipeline.store.verification import verify
from tests.store import made_store

ROWS, CLASSES = 70, 20
REJECTED = (3, 40)
UNCOVERED = (5, 33, 69)
IDS = [f"-_aBc{row:06d}" for row in range(ROWS)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = made_store.content(ROWS, rejected=REJECTED)
    made.rows["view"] = ["mix" if row % 10 == 7 else "clean" for row in range(ROWS)]
    made.rows["duration_seconds"] = 2.0
    return made_store.make_store(tmp_path / "s", made)


def covered(row: int) -> bool:
    return row not in REJECTED and row not in UNCOVERED and row % 10 != 7


def published(folder: Path) -> tuple[numpy.ndarray, dict[str, int]]:
    """A file in another order, with clips that the store does not have."""
    order = [int(row) for row in numpy.random.default_rng(1).permutation(ROWS) if row not in UNCOVERED]
    logits = numpy.random.default_rng(2).normal(0, 3, (len(order) + 4, CLASSES)).astype(numpy.float32)
    numpy.save(folder / "logits.npy", logits)
    names = {f"Y{IDS[row]}.mp3": place for place, row in enumerate(order)}
    return logits, {**names, **{f"Ynowhere{n:04d}.mp3": len(order) + n for n in range(4)}}


def write_names(folder: Path, form: str, names: dict[str, int]) -> Path:
    path = folder / f"names{form}"
    ordered = sorted(names, key=lambda name: names[name])
    if form == ".json":
        path.write_text(json.dumps(dict(reversed(names.items()))))
    elif form == ".npz":
        numpy.savez(path, names=numpy.array(ordered, dtype="S20"))
    else:
        path.write_text("filename\n" + "\n".join(ordered) + "\n")
    return path


@pytest.mark.parametrize("form", [".json", ".csv", ".npz"])
def test_a_row_each_or_missing(store: Path, tmp_path: Path, form: str) -> None:
    logits, names = published(tmp_path)
    source = NpyLogits(tmp_path / "logits.npy", write_names(tmp_path, form, names))
    found = join(store, source, IDS, "ensemble", dtype="float32", licence="MIT", citation="someone")
    clean = [row for row in range(ROWS) if row not in REJECTED and row % 10 != 7]
    assert (found.rows, found.covered) == (len(clean), len(clean) - 3)
    assert (found.clips_in_file, found.clips_used, found.unusable) == (71, found.covered, 0)
    assert found.uncovered_ids == tuple(IDS[row] for row in UNCOVERED)
    assert found.by_split["validation"] == (13, 14)
    reader = StoreReader(store, teacher="ensemble:logits")
    got = numpy.concatenate([reader.read_shard(s, ("embedding",))["embedding"] for s in range(3)])
    for row in range(ROWS):
        if covered(row):
            numpy.testing.assert_array_equal(got[row], logits[names[f"Y{IDS[row]}.mp3"]])
        else:
            assert numpy.isnan(got[row]).all()
    status = reader.rows["status"]
    assert [row for row in range(ROWS) if status[row] == "ok"] == [r for r in range(ROWS) if covered(r)]
    assert [row for row in range(ROWS) if status[row] == "rejected"] == list(REJECTED)
    assert reader.embedding.licence == "MIT"
    assert verify(store).sound
    # The other arrays know nothing of what this one lacks.
    assert (StoreReader(store, teacher="linear").rows["status"] == "ok").sum() == ROWS - 2
    both = StoreReader(store, teacher=Combination(("linear", "ensemble:logits")))
    assert (both.rows["status"] == "ok").sum() == found.covered
    assert both.embedding.row_shape == (made_store.DIM + CLASSES,)


def test_sigmoid_outputs_come_back_as_logits(store: Path, tmp_path: Path) -> None:
    logits, names = published(tmp_path)
    numpy.save(tmp_path / "logits.npy", expit(logits.astype(numpy.float64)))
    source = NpyLogits(tmp_path / "logits.npy", write_names(tmp_path, ".json", names), "sigmoid")
    read = source.read(numpy.array([4, 2, 2, 0]))["logits"]
    numpy.testing.assert_allclose(read, logits[[4, 2, 2, 0]], atol=1e-4)


def test_numbers_that_are_not_finite_are_missing(store: Path, tmp_path: Path) -> None:
    logits, names = published(tmp_path)
    logits[names[f"Y{IDS[10]}.mp3"], 3] = numpy.inf
    logits[names[f"Y{IDS[11]}.mp3"], 3] = 1e6  # too large for float16
    numpy.save(tmp_path / "logits.npy", logits)
    source = NpyLogits(tmp_path / "logits.npy", write_names(tmp_path, ".json", names))
    assert join(store, source, IDS, "ensemble").unusable == 2
    status = StoreReader(store, teacher="ensemble:logits").rows["status"]
    assert (status[10], status[11], status[12]) == ("missing", "missing", "ok")
    assert verify(store).sound


def ced_files(folder: Path, top_k: int = 6) -> tuple[Path, dict[tuple[str, float], numpy.ndarray]]:
    """The layout that CED's save_logits leaves: two chunks of 10 s of each clip, falling probabilities."""
    generator = numpy.random.default_rng(3)
    entries, values, indices, wanted = [], [], [], {}
    for row in range(ROWS):
        for start in (0.0, 10.0):
            probability = generator.uniform(0.01, 0.9, CLASSES).astype(numpy.float16)
            largest = numpy.argsort(-probability, kind="stable")[:top_k]
            entries.append((f"Y{IDS[row]}.wav", start, start + 10))
            values.append(probability[largest])
            indices.append(largest)
            wanted[IDS[row], start] = probability
    with h5py.File(folder / "logits_ep1_0.h5", "w") as file:
        file.create_dataset("topk_values", data=numpy.array(values), maxshape=(None, top_k), dtype="float16")
        file.create_dataset("topk_indexes", data=numpy.array(indices), maxshape=(None, top_k), dtype="int16")
        file.create_dataset("seeds", data=numpy.zeros(len(values), dtype="int32"))
    table = pandas.DataFrame(entries, columns=["filename", "start", "end"])
    table.astype({"start": "float32", "end": "float32"}).to_parquet(folder / "logits_ep1_0.parquet")
    return folder / "logits_ep1_0.h5", wanted


def test_top_k_of_the_chunk_that_a_window_lies_in(store: Path, tmp_path: Path) -> None:
    path, wanted = ced_files(tmp_path)
    source = TopKHdf5Logits(path, classes=CLASSES)
    found = join(store, source, [f"{one}.flac" for one in IDS], "ced", dtype="float32")
    assert found.covered == sum(row not in REJECTED and row % 10 != 7 for row in range(ROWS))
    reader = StoreReader(store, teacher="ced:logits")
    starts = StoreReader(store).rows["start_seconds"]
    for row in (0, 12, 28, 29, 30, 35, 68):
        probability = wanted[IDS[row], 0.0 if starts[row] < 9 else 10.0].astype(numpy.float64)
        largest = numpy.argsort(-probability, kind="stable")[:6]
        logits = reader.read_shard(row // 32, ("embedding",))["embedding"][row % 32]
        numpy.testing.assert_allclose(expit(logits[largest]), probability[largest], atol=1e-6)
        dropped = numpy.delete(expit(logits.astype(numpy.float64)), largest)
        numpy.testing.assert_allclose(dropped, probability[largest].min() / (CLASSES - 6), rtol=1e-4)
        members = reader.read_members(reader.embedding, row // 32)
        assert members["tail"][row % 32] == pytest.approx(logsumexp(numpy.delete(logits, largest)), abs=1e-4)
    assert verify(store).sound
    assert "augmented" in reader.embedding.config["note"]


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    _, names = published(tmp_path)
    for name in ("names.pkl", "names.csv"):
        (tmp_path / name).write_bytes(pickle.dumps(names))
        with pytest.raises(StoreError, match="is a pickle") as caught:
            NpyLogits(tmp_path / "logits.npy", tmp_path / name)
        assert "json.dump(pickle.load" in str(caught.value.run)
    numpy.save(tmp_path / "objects.npy", numpy.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match="no array of numbers"):
        NpyLogits(tmp_path / "objects.npy", write_names(tmp_path, ".json", names))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('["one"]', "does not fit"),
        ('{"one": 71}', "rows that the logits do not have"),
        ('{"one": -1}', "rows that the logits do not have"),
        ("3", "no list of names"),
        ("[" * 100_000, "no list of names"),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, content: str, problem: str) -> None:
    published(tmp_path)
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(StoreError, match=problem):
        NpyLogits(tmp_path / "logits.npy", tmp_path / "names.json")


def test_a_hostile_top_k_file(tmp_path: Path) -> None:
    path, _ = ced_files(tmp_path)
    with h5py.File(path, "a") as file:
        del file["topk_values"]
        file.create_dataset("topk_values", shape=(1 << 27, 6), dtype="float16", chunks=(1024, 6))
    with pytest.raises(Hdf5Error, match="none was ever written"):
        TopKHdf5Logits(path, classes=CLASSES)
    path, _ = ced_files(tmp_path)
    with h5py.File(path, "a") as file:
        file["topk_indexes"][0] = [1, 1, 2, 3, 4, 5]
        file["topk_indexes"][1] = [1, 0, 2, 3, 4, CLASSES]
    read = TopKHdf5Logits(path, classes=CLASSES).read(numpy.array([0, 1, 2]))
    assert numpy.isnan(read["tail"]).tolist() == [True, True, False]


def test_no_row_is_covered(store: Path, tmp_path: Path) -> None:
    _, names = published(tmp_path)
    source = NpyLogits(tmp_path / "logits.npy", write_names(tmp_path, ".json", names))
    with pytest.raises(StoreError, match="covers no row") as caught:
        join(store, source, ["bell.wav"] * ROWS, "ensemble")
    assert "'bell'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Y--4gqARaEJE.wav", "--4gqARaEJE"),
        ("--4gqARaEJE", "--4gqARaEJE"),
        ("YouTubeVide", "YouTubeVide"),
        ("YYouTubeVide.mp3", "YouTubeVide"),
        ("audio/Y_0abcdefghi_30.000_40.000.flac", "_0abcdefghi"),
        ("_0abcdefghi_30000", "_0abcdefghi"),
        ("door bell.wav", "door bell"),
    ],
)
def test_ids_of_file_names(name: str, wanted: str) -> None:
    assert clip_id(name) == wanted
