"""The loader with weighted draws and with targets of other rows: every row's values, ranks, resuming."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import arena
from pipeline.data.draws import Draws
from pipeline.data.loader import Batch, ShardLoader
from pipeline.data.target_rows import TargetRows, clean_rows
from pipeline.errors import DigestMismatchError, StoreError
from pipeline.store.combination import Combination
from pipeline.store.reader import StoreReader
from tests.data import labelled_store
from tests.store import made_store

MADE = labelled_store.content()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return labelled_store.make(tmp_path_factory.mktemp("weighted") / "s")


def weights_of(reader: StoreReader, seed: int) -> numpy.ndarray:
    generator = numpy.random.default_rng(seed)
    weights: numpy.ndarray = generator.exponential(1, len(reader.rows)) ** 2
    weights[generator.random(len(weights)) < 0.3] = 0
    return weights


def check(batch: Batch) -> None:
    assert batch.spectrogram is not None
    assert batch.embedding is not None
    numpy.testing.assert_array_equal(batch.spectrogram.numpy(), MADE.log_mel[batch.index.numpy()])
    numpy.testing.assert_array_equal(batch.embedding.numpy(), MADE.embedding[batch.target_index.numpy()])


def taken(loader: ShardLoader, batches: int) -> list[list[int]]:
    found = []
    for batch in itertools.islice(loader, batches):
        check(batch)
        found.append(batch.index.tolist())
    return found


@settings(max_examples=20, deadline=None)
@given(
    batch_size=st.integers(1, 60),
    shuffle_rows=st.integers(1, 300),
    rows=st.integers(60, 400),
    kind=st.sampled_from(["independent", "stratified"]),
    cached=st.booleans(),
    world=st.integers(1, 3),
)
def test_an_epoch_over_all_ranks_is_what_was_drawn(
    reader: StoreReader, batch_size: int, shuffle_rows: int, rows: int, kind: str, cached: bool, world: int
) -> None:
    draws = Draws(weights_of(reader, 1), rows, kind)  # type: ignore[arg-type]
    allowed = numpy.where(reader.usable("train"), draws.weights, 0)
    seen: Counter[int] = Counter()
    for rank in range(world):
        loader = ShardLoader(
            reader, batch_size, 5, shuffle_rows, rank=rank, world=world, drop_last=False, draws=draws,
            cache_bytes=2**30 if cached else 0,
        )  # fmt: skip
        batches = list(loader.one_epoch(3))
        assert len(batches) == loader.batches_per_epoch
        for batch in batches:
            check(batch)
            seen.update(batch.index.tolist())
    kept = allowed > 0
    counts = draws.counts(allowed[kept], 5, 3)
    assert seen == Counter({
        row: int(n) for row, n in zip(numpy.flatnonzero(kept).tolist(), counts, strict=True) if n
    })  # fmt: skip
    assert sum(seen.values()) == rows


@settings(max_examples=12, deadline=None)
@given(place=st.integers(0, 1000), drop_last=st.booleans(), cached=st.booleans())
def test_resuming_anywhere_goes_on_as_if_never_stopped(
    reader: StoreReader, place: int, drop_last: bool, cached: bool
) -> None:
    def fresh() -> ShardLoader:
        return ShardLoader(
            reader, 17, 9, 60, drop_last=drop_last, cache_bytes=2**30 if cached else 0,
            draws=Draws(weights_of(reader, 2), 150),
        )  # fmt: skip

    per_epoch = fresh().batches_per_epoch
    place %= 2 * per_epoch + 1
    whole = taken(fresh(), 2 * per_epoch + 3)
    stopped = fresh()
    taken(stopped, place)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = fresh()
    resumed.load_state_dict(state)
    assert taken(resumed, len(whole) - place) == whole[place:]


def test_another_draw_is_another_order(reader: StoreReader) -> None:
    weights = weights_of(reader, 2)
    state = ShardLoader(reader, 17, 9, 60, draws=Draws(weights, 150)).state_dict()
    for other in (None, Draws(weights, 151), Draws(weights, 150, "stratified"), Draws(weights + 1e-9, 150)):
        with pytest.raises(DigestMismatchError, match="another order"):
            ShardLoader(reader, 17, 9, 60, draws=other).load_state_dict(state)


def test_rows_that_are_never_drawn_are_not_held(reader: StoreReader) -> None:
    weights = numpy.zeros(len(reader.rows))
    weights[[1, 3, 30, 150]] = 1
    loader = ShardLoader(reader, 4, 0, 8, draws=Draws(weights, 40), arrays=("spectrogram",))
    assert loader.rows == 4
    assert loader.rows_per_epoch == 40
    assert set(itertools.chain(*(b.index.tolist() for b in loader.one_epoch()))) == {1, 3, 30, 150}
    assert loader._cache is not None
    assert sum(len(values) for values in loader._cache.values.values()) == 4


def test_views_with_the_clean_target(reader: StoreReader) -> None:
    targets = clean_rows(reader)
    rows = reader.rows
    for row in range(len(rows)):
        is_view = rows["view"][row] == "augmented"
        source_usable = row - 1 not in labelled_store.REJECTED
        consistent = is_view and row % 30 != 5 and source_usable
        assert targets[row] == (row - 1 if consistent else row)
    training = reader.usable("train")
    for cache_bytes in (0, 2**30):
        loader = ShardLoader(
            reader, 16, 1, 50, targets=TargetRows(reader, targets, training), cache_bytes=cache_bytes
        )
        changed = 0
        for batch in loader.one_epoch():
            check(batch)
            numpy.testing.assert_array_equal(batch.target_index, targets[batch.index.numpy()])
            changed += int((batch.target_index != batch.index).sum())
        assert changed > 20


def test_own_targets_are_the_rows_themselves(reader: StoreReader) -> None:
    batch = next(iter(ShardLoader(reader, 8)))
    assert torch.equal(batch.target_index, batch.index)


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize("how", ["concat", "mean"])
def test_combined_teachers_are_combined_as_the_reader_does(
    tmp_path: Path, how: str, cache_bytes: int
) -> None:
    from tests.store import every_kind

    folder = every_kind.make_store(tmp_path / "s")
    names = ("linear:layer.2", "linear:layer.0") if how == "mean" else ("linear", "linear:layer.2")
    reader = StoreReader(folder, teacher=Combination(names, how, (1.0, 2.0)))  # type: ignore[arg-type]
    wanted = numpy.concatenate([
        reader.read_shard(shard, ("embedding",))["embedding"] for shard in range(reader.meta.shards)
    ])  # fmt: skip
    loader = ShardLoader(
        reader, 5, split=None, arrays=("embedding",), drop_last=False, cache_bytes=cache_bytes
    )
    for batch in loader.one_epoch():
        numpy.testing.assert_array_equal(batch.embedding, wanted[batch.index.numpy()])


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_several_readers_at_once_give_the_same(
    reader: StoreReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache_bytes: int
) -> None:
    wanted = taken(ShardLoader(reader, 16, 1, 100, cache_bytes=cache_bytes), 12)
    monkeypatch.setattr(arena, "local_readers", lambda: 4)
    assert taken(ShardLoader(reader, 16, 1, 100, cache_bytes=cache_bytes), 12) == wanted
    folder = made_store.make_store(tmp_path / "s", MADE, shard_rows=24)
    damaged = StoreReader(folder)
    (folder / damaged.spectrogram.path / "log_mel/c/3/0/0").unlink()
    with pytest.raises(StoreError, match="shard 3"):
        list(ShardLoader(damaged, 16, 1, 100, cache_bytes=cache_bytes).one_epoch())


def test_what_is_still_referred_to_is_not_written_over(reader: StoreReader) -> None:
    loader = ShardLoader(reader, 8, 1, 50, cache_bytes=0)
    held: list[tuple[int, torch.Tensor, numpy.ndarray]] = []
    places = set()
    for number, batch in enumerate(itertools.islice(loader, 120)):
        assert batch.spectrogram is not None
        assert batch.embedding is not None
        places.add(batch.spectrogram.data_ptr())
        if number % 3 == 0:
            # A view of the one and an array over the other outlive the batch.
            held.append((int(batch.index[5]), batch.spectrogram[5, 1:], batch.embedding[5].numpy()))
    for row, log_mel, embedding in held:
        numpy.testing.assert_array_equal(log_mel.numpy(), MADE.log_mel[row, 1:])
        numpy.testing.assert_array_equal(embedding, MADE.embedding[row])
    assert len(places) < 40 + 20


def test_buffers_are_used_again(tmp_path: Path) -> None:
    reader = StoreReader(made_store.make_store(tmp_path / "s", MADE, shard_rows=24))
    loader = ShardLoader(reader, 16, 1, 50, cache_bytes=0, arrays=("spectrogram",))
    made = 0
    real = numpy.empty

    def counted(shape: object, *args: object, **options: object) -> numpy.ndarray:
        nonlocal made
        made += isinstance(shape, int) and shape > 2_000
        return real(shape, *args, **options)  # type: ignore[call-overload,no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.data.arena.numpy.empty", counted)
        taken_rows = [len(batch) for batch in itertools.islice(loader, 12 * loader.batches_per_epoch)]
    assert len(taken_rows) == 12 * loader.batches_per_epoch
    # About 36 blocks were read; at most four live at once, and a few grow.
    assert made <= 12
