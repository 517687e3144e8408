"""One-pass statistics against numpy on the whole array."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from pipeline.data.statistics import read_embeddings, spectrogram_statistics
from pipeline.store.reader import StoreReader
from tests.store import made_store

MADE = made_store.content(130, (1, 60, 129))


def test_against_the_whole_array(tmp_path: Path) -> None:
    reader = StoreReader(made_store.make_store(tmp_path / "s", MADE))
    rows = [row for row in range(130) if row not in MADE.rejected]
    train = [row for row in rows if row % 5 != 4]
    values = MADE.log_mel[train].astype(numpy.float64)
    mean, std = spectrogram_statistics(reader)
    assert mean == pytest.approx(values.mean(), rel=1e-6)
    assert std == pytest.approx(values.std(), rel=1e-6)
    index, embedding = read_embeddings(reader)
    assert index.tolist() == rows
    assert embedding.dtype == numpy.float32
    numpy.testing.assert_array_equal(embedding, MADE.embedding[rows])
    assert read_embeddings(reader, "train")[0].tolist() == train
