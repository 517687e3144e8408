"""The loader gives every row once an epoch, the right values with it, and resumes exactly."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.loader import Batch, ShardLoader
from pipeline.errors import ConfigError, DigestMismatchError, StoreError, TrainingError
from pipeline.store.reader import StoreReader
from pipeline.store.schema import ArraySpec
from tests.store import made_store

ROWS, REJECTED = 230, (0, 3, 77, 229)
MADE = made_store.content(ROWS, REJECTED)
TRAIN = [row for row in range(ROWS) if row % 5 != 4 and row not in REJECTED]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return StoreReader(made_store.make_store(tmp_path_factory.mktemp("loader") / "s", MADE, shard_rows=24))


def taken(loader: ShardLoader, batches: int) -> list[list[int]]:
    return [batch.index.tolist() for batch in itertools.islice(loader, batches)]


def check_values(batch: Batch) -> None:
    assert batch.spectrogram is not None
    assert batch.embedding is not None
    assert batch.spectrogram.dtype == torch.float16
    assert batch.embedding.dtype == torch.float32
    numpy.testing.assert_array_equal(batch.spectrogram.numpy(), MADE.log_mel[batch.index.numpy()])
    numpy.testing.assert_array_equal(batch.embedding.numpy(), MADE.embedding[batch.index.numpy()])


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 190),
    shuffle_rows=st.integers(1, 300),
    cached=st.booleans(),
    shuffle=st.booleans(),
    world=st.integers(1, 3),
)
def test_an_epoch_gives_each_row_once_with_its_values(
    reader: StoreReader, batch_size: int, shuffle_rows: int, cached: bool, shuffle: bool, world: int
) -> None:
    rows: list[int] = []
    for rank in range(world):
        loader = ShardLoader(
            reader, batch_size, 5, shuffle_rows, rank=rank, world=world, drop_last=False, shuffle=shuffle,
            cache_bytes=2**30 if cached else 0,
        )  # fmt: skip
        assert loader.cached == cached
        batches = list(loader.one_epoch(3))
        assert len(batches) == loader.batches_per_epoch
        assert all(len(batch) == batch_size for batch in batches[:-1])
        for batch in batches:
            check_values(batch)
            rows += batch.index.tolist()
    assert sorted(rows) == TRAIN
    if not shuffle:
        assert rows == TRAIN


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 60),
    shuffle_rows=st.integers(1, 300),
    place=st.integers(0, 1000),
    drop_last=st.booleans(),
    cached=st.booleans(),
)
def test_resuming_anywhere_goes_on_as_if_never_stopped(
    reader: StoreReader, batch_size: int, shuffle_rows: int, place: int, drop_last: bool, cached: bool
) -> None:
    def fresh() -> ShardLoader:
        return ShardLoader(
            reader, batch_size, 9, shuffle_rows, drop_last=drop_last, cache_bytes=2**30 if cached else 0
        )

    per_epoch = fresh().batches_per_epoch
    place %= 2 * per_epoch + 1
    whole = taken(fresh(), 2 * per_epoch + 3)
    stopped = fresh()
    assert taken(stopped, place) == whole[:place]
    state = json.loads(json.dumps(stopped.state_dict()))
    assert (state["epoch"], state["batch"]) == divmod(place, per_epoch)
    resumed = fresh()
    resumed.load_state_dict(state)
    assert taken(resumed, len(whole) - place) == whole[place:]
    # The loader itself goes on where it was left, too.
    assert taken(stopped, len(whole) - place) == whole[place:]


def test_caching_does_not_change_the_order(reader: StoreReader) -> None:
    streamed = ShardLoader(reader, 16, 1, 50, cache_bytes=0)
    cached = ShardLoader(reader, 16, 1, 50)
    assert taken(streamed, 30) == taken(cached, 30)


def test_a_cached_loader_reads_each_shard_once(reader: StoreReader, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = StoreReader.read_stored

    def counted(self: StoreReader, spec: ArraySpec, shard: int, out: dict[str, numpy.ndarray]) -> None:
        read.append(shard)
        original(self, spec, shard, out)

    monkeypatch.setattr(StoreReader, "read_stored", counted)
    loader = ShardLoader(reader, 16, 1, 50, arrays=("spectrogram",))
    taken(loader, 3 * loader.batches_per_epoch)
    assert sorted(read) == list(range(len(reader.shard_sizes)))
    read.clear()
    for batch in ShardLoader(reader, 16, 1, 50, arrays=("spectrogram",), cache_bytes=0).one_epoch():
        assert batch.embedding is None
    assert sorted(read) == list(range(len(reader.shard_sizes)))


def test_what_drop_last_drops(reader: StoreReader) -> None:
    loader = ShardLoader(reader, 50, 1, 64)
    assert loader.batches_per_epoch == len(TRAIN) // 50 == 3
    epochs = [set(itertools.chain(*(b.index.tolist() for b in loader.one_epoch(e)))) for e in range(4)]
    assert {len(epoch) for epoch in epochs} == {150}
    assert set.union(*epochs) == set(TRAIN)
    ranks = [ShardLoader(reader, 7, 1, 64, rank=rank, world=4) for rank in range(4)]
    assert len({loader.batches_per_epoch for loader in ranks}) == 1
    assert all(len(list(loader.one_epoch())) == loader.batches_per_epoch for loader in ranks)


def test_splits_and_masks(reader: StoreReader) -> None:
    validation = ShardLoader(reader, 8, split="validation", shuffle=False, drop_last=False)
    assert list(itertools.chain(*(b.index.tolist() for b in validation.one_epoch()))) == [
        row for row in range(4, ROWS, 5) if row not in REJECTED
    ]
    bells = (reader.rows["label"] == "bell").to_numpy()
    labelled = ShardLoader(reader, 8, split=None, mask=bells, drop_last=False)
    assert labelled.rows == len([row for row in range(0, ROWS, 3) if row not in REJECTED])


def test_uint8_store(tmp_path: Path) -> None:
    folder = made_store.make_store(tmp_path / "s", MADE, made_store.specs("uint8", "float16"))
    batch = next(iter(ShardLoader(StoreReader(folder), 32, 1)))
    rows = batch.index.numpy()
    assert batch.spectrogram is not None
    assert batch.embedding is not None
    assert batch.embedding.dtype == torch.float32
    assert abs(batch.spectrogram.numpy() - MADE.log_mel[rows]).max() < 0.1
    numpy.testing.assert_array_equal(batch.embedding, MADE.embedding[rows].astype(numpy.float16))


def test_threads_end_with_the_iteration(reader: StoreReader) -> None:
    for _ in range(3):
        for _ in ShardLoader(reader, 16, 1, 50):
            break
    iterator = iter(ShardLoader(reader, 16, 1, 50))
    next(iterator)
    assert any(thread.name.startswith("ossicle") for thread in threading.enumerate())
    del iterator
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ossicle")]


def test_damage_is_raised_where_batches_are_taken(tmp_path: Path) -> None:
    folder = made_store.make_store(tmp_path / "s", MADE)
    reader = StoreReader(folder)
    (folder / reader.spectrogram.path / "log_mel/c/3/0/0").unlink()
    for cache_bytes in (0, 2**30):
        with pytest.raises(StoreError, match="shard 3"):
            list(ShardLoader(reader, 16, 1, 50, cache_bytes=cache_bytes).one_epoch())


def test_a_state_of_another_order(reader: StoreReader) -> None:
    state = ShardLoader(reader, 16, 1, 50).state_dict()
    others = [
        ShardLoader(reader, 8, 1, 50), ShardLoader(reader, 16, 2, 50), ShardLoader(reader, 16, 1, 60),
        ShardLoader(reader, 16, 1, 50, split=None), ShardLoader(reader, 16, 1, 50, world=2),
    ]  # fmt: skip
    for other in others:
        with pytest.raises(DigestMismatchError, match="another order"):
            other.load_state_dict(state)


def test_refusals(reader: StoreReader) -> None:
    with pytest.raises(TrainingError, match="fewer rows than one batch"):
        ShardLoader(reader, 1000)
    with pytest.raises(TrainingError, match="no usable row"):
        ShardLoader(reader, 2, mask=numpy.zeros(ROWS, dtype=bool))
    with pytest.raises(TrainingError, match="mask does not fit"):
        ShardLoader(reader, 2, mask=numpy.ones(3, dtype=bool))
    with pytest.raises(ConfigError, match="unknown arrays"):
        ShardLoader(reader, 2, arrays=("waveform",))
    with pytest.raises(ConfigError, match="at least 1"):
        ShardLoader(reader, 0)
