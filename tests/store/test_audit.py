"""An audit agrees with an honest teacher and names the rows that a dishonest one changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pandas
import pytest

from pipeline.errors import StoreError
from pipeline.store.audit import audit, draw
from pipeline.store.reader import StoreReader
from tests.store import made_store

MADE = made_store.content(100, rejected=(3, 99))
SPECTROGRAM, EMBEDDING = made_store.specs()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return StoreReader(made_store.make_store(tmp_path_factory.mktemp("audit") / "s", MADE))


def made_anew(
    change: Callable[[numpy.ndarray, pandas.DataFrame], None] = lambda values, rows: None,
) -> Callable[[pandas.DataFrame], dict[str, numpy.ndarray]]:
    def again(rows: pandas.DataFrame) -> dict[str, numpy.ndarray]:
        embedding = MADE.embedding[rows["row"]].copy()
        change(embedding, rows)
        return {EMBEDDING.path: embedding, SPECTROGRAM.path: MADE.log_mel[rows["row"]].astype(numpy.float32)}

    return again


def test_the_same_values_agree(reader: StoreReader) -> None:
    asked: list[int] = []
    rows = draw(reader, 40)
    found = audit(
        reader, [EMBEDDING, SPECTROGRAM], made_anew(lambda values, rows: asked.extend(rows["row"])), rows
    )
    assert asked == sorted(set(asked)) == list(rows)
    assert len(asked) == 40
    assert not {3, 99} & set(asked)
    assert [one.array for one in found] == [EMBEDDING.path, SPECTROGRAM.path]
    for one in found:
        assert (one.max_difference, one.max_relative_error, one.disagreeing) == (0, 0, ())
        assert one.min_cosine == pytest.approx(1)
        assert one.centred_cosine == pytest.approx(1)
        assert one.holds


@pytest.mark.parametrize("sample", [1, 4, 7, 40, 98, 500])
def test_a_sample_sees_every_shard(reader: StoreReader, sample: int) -> None:
    rows = draw(reader, sample, seed=sample)
    assert len(rows) == len(set(rows)) == min(max(sample, 4), 98)
    counts = numpy.bincount(rows // 32, minlength=4)
    assert (counts > 0).all()
    assert list(draw(reader, None)) == [row for row in range(100) if row not in (3, 99)]
    # Shard 3 has three usable rows; the others share evenly what is left.
    assert counts[:3].max() - counts[:3].min() <= (1 if sample < 90 else 2)


def test_other_rows_are_named(reader: StoreReader) -> None:
    def turned_and_scaled(values: numpy.ndarray, rows: pandas.DataFrame) -> None:
        values[rows["row"] == 50] *= -1
        values[rows["row"] == 70] *= 1.1  # the cosine alone would not see it

    (found,) = audit(reader, [EMBEDDING], made_anew(turned_and_scaled), draw(reader, None))
    assert found.disagreeing == (50, 70)
    assert found.min_cosine == pytest.approx(-1)
    assert found.max_relative_error == pytest.approx(2, rel=1e-5)
    assert found.max_difference == pytest.approx(2 * numpy.abs(MADE.embedding[50]).max(), rel=1e-6)
    assert not found.holds


def test_thresholds(reader: StoreReader) -> None:
    def nudged(values: numpy.ndarray, rows: pandas.DataFrame) -> None:
        values[rows["row"] == 60, 2] += 0.01

    def disagreeing(**thresholds: float) -> tuple[int, ...]:
        (one,) = audit(reader, [EMBEDDING], made_anew(nudged), draw(reader, None), **thresholds)  # type: ignore[arg-type]
        return one.disagreeing

    assert disagreeing() == ()
    assert disagreeing(max_difference=0.009) == (60,)
    assert disagreeing(max_difference=0.011) == ()
    assert disagreeing(min_cosine=0.99999999) == (60,)


def test_nothing_to_audit(reader: StoreReader) -> None:
    with pytest.raises(StoreError, match="nothing to audit"):
        draw(reader, 0)
