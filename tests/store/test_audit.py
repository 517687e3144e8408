"""An audit agrees with an honest teacher and names the row that a dishonest one changed."""

from __future__ import annotations

import numpy
import pandas
import pytest

from pipeline.errors import StoreError
from pipeline.store.audit import audit
from pipeline.store.reader import StoreReader
from tests.store import made_store

MADE = made_store.content(100, rejected=(3, 99))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return StoreReader(made_store.make_store(tmp_path_factory.mktemp("audit") / "s", MADE))


def test_the_same_values_agree(reader: StoreReader) -> None:
    asked: list[int] = []

    def again(rows: pandas.DataFrame) -> dict[str, numpy.ndarray]:
        asked.extend(rows["row"])
        return {"embedding": MADE.embedding[rows["row"]], "spectrogram": MADE.log_mel[rows["row"]]}

    found = audit(reader, again, 40)
    assert len(asked) == len(set(asked)) == 40
    assert not {3, 99} & set(asked)
    assert [one.kind for one in found] == ["embedding", "spectrogram"]
    for one in found:
        assert (one.max_error, one.relative_error) == (0, 0)
        assert one.min_cosine == pytest.approx(1)
        assert one.centred_cosine == pytest.approx(1)
        assert one.holds()


def test_one_other_row_is_named(reader: StoreReader) -> None:
    def again(rows: pandas.DataFrame) -> dict[str, numpy.ndarray]:
        values = MADE.embedding[rows["row"]].copy()
        values[rows["row"] == 50] *= -1
        return {"embedding": values}

    (found,) = audit(reader, again, 98)
    assert found.worst_row == 50
    assert found.min_cosine == pytest.approx(-1)
    assert not found.holds()
    difference = 2 * numpy.linalg.norm(MADE.embedding[50])
    kept = numpy.delete(MADE.embedding, [3, 99], axis=0)
    assert found.relative_error == pytest.approx(difference / numpy.linalg.norm(kept), rel=1e-5)


def test_nothing_to_audit(reader: StoreReader) -> None:
    with pytest.raises(StoreError, match="nothing to audit"):
        audit(reader, lambda rows: {}, 0)
