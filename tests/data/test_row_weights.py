"""What [sampling] makes of a store's rows, and the clusters that it keeps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score

from pipeline import artifact
from pipeline.data import clusters
from pipeline.data.clusters import clusters_of
from pipeline.data.draws import Draws
from pipeline.data.row_weights import draws_of
from pipeline.data_config import SamplingConfig
from pipeline.errors import ConfigError, DigestMismatchError, TrainingError
from pipeline.store.reader import StoreReader
from tests.data import labelled_store
from tests.store import made_store


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return labelled_store.make(tmp_path_factory.mktemp("weights") / "s")


def drawn(reader: StoreReader, root: Path, **keys: Any) -> Draws:
    found = draws_of(reader, reader.usable("train"), SamplingConfig(**keys), root)
    assert found is not None
    assert found.weights.sum() == pytest.approx(1)
    assert not found.weights[~reader.usable("train")].any()
    return found


def shares(reader: StoreReader, weights: np.ndarray, column: str) -> dict[Any, float]:
    return {
        name: float(weights[(reader.rows[column] == name).to_numpy()].sum())
        for name in reader.rows[column].unique()
    }


def test_no_key_draws_every_row_once(reader: StoreReader, tmp_path: Path) -> None:
    assert draws_of(reader, reader.usable("train"), SamplingConfig(), tmp_path) is None


def test_clusters_have_equal_shares_and_are_what_scikit_learn_finds(
    reader: StoreReader, tmp_path: Path
) -> None:
    weights = drawn(reader, tmp_path, balance="clusters", clusters=3).weights
    assert shares(reader, weights, "cloud") == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
    usable, training = reader.usable(), reader.usable("train")
    embedding = labelled_store.content().embedding
    for fit, rows in (
        ("train", embedding[training]),
        ("all", np.concatenate([embedding[usable & ~training], embedding[training]])),
    ):
        model = MiniBatchKMeans(
            3, init="k-means++", n_init=10, max_iter=100, batch_size=10_000, tol=0.0, max_no_improvement=100,
            reassignment_ratio=0.0, random_state=42,
        ).fit(rows)  # fmt: skip
        found = clusters_of(reader, SamplingConfig(balance="clusters", clusters=3, cluster_fit=fit), tmp_path)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.centres, model.cluster_centers_)
        np.testing.assert_array_equal(found.assignment[usable], model.predict(embedding[usable]))
        assert (found.assignment[~usable] == -1).all()
        assert adjusted_rand_score(found.assignment[usable], reader.rows["cloud"][usable]) == 1


def test_clusters_fitted_on_some_rows(reader: StoreReader, tmp_path: Path) -> None:
    config = SamplingConfig(balance="clusters", clusters=3, cluster_fit_rows=60)
    usable = reader.usable()
    found = clusters_of(reader, config, tmp_path)
    whole = clusters_of(reader, config.model_copy(update={"cluster_fit_rows": None}), tmp_path)
    assert not np.array_equal(found.centres, whole.centres)
    assert adjusted_rand_score(found.assignment[usable], whole.assignment[usable]) == 1
    enough = config.model_copy(update={"cluster_fit_rows": 10_000})
    np.testing.assert_array_equal(clusters_of(reader, enough, tmp_path).centres, whole.centres)


def test_clusters_are_kept_and_checked(
    reader: StoreReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SamplingConfig(balance="clusters", clusters=3)
    first = clusters_of(reader, config, tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("fitted again")

    with monkeypatch.context() as patch:
        patch.setattr(clusters, "fit", never)
        again = clusters_of(reader, config, tmp_path)
        np.testing.assert_array_equal(again.assignment, first.assignment)
        np.testing.assert_array_equal(again.centres, first.centres)
        for change in ({"clusters": 4}, {"cluster_seed": 1}, {"cluster_fit": "all"}):
            with pytest.raises(AssertionError, match="fitted again"):
                clusters_of(reader, config.model_copy(update=change), tmp_path)
    (folder,) = [path.parent for path in tmp_path.rglob(clusters.FILE)]
    assert artifact.read(folder).summary["sizes"] == np.bincount(first.assignment[reader.usable()]).tolist()
    content = bytearray((folder / clusters.FILE).read_bytes())
    content[-1] ^= 1
    (folder / clusters.FILE).write_bytes(content)
    with pytest.raises(DigestMismatchError, match="not what was written"):
        clusters_of(reader, config, tmp_path)


def test_fewer_rows_than_clusters(reader: StoreReader, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fewer rows than clusters"):
        drawn(reader, tmp_path, balance="clusters", clusters=500)


def test_labels_several_a_row(reader: StoreReader, tmp_path: Path) -> None:
    training = reader.usable("train")
    tags = reader.rows["tags"][training]
    count = {"a": int(tags.str.contains("a").sum()), "b": int(tags.str.contains("b").sum())}
    raw = np.array([sum(1 / (100 + count[tag]) for tag in text.split(";") if tag) for text in tags])
    keys = {"balance": "labels", "label_column": "tags"}
    found = drawn(reader, tmp_path, **keys, unlabelled="leave_out")
    np.testing.assert_allclose(found.weights[training], raw / raw.sum())
    assert found.rows == (raw > 0).sum()
    with pytest.raises(ConfigError, match="have no tags"):
        drawn(reader, tmp_path, **keys)
    one = drawn(reader, tmp_path, **keys, unlabelled="one_label")
    assert (one.weights[training] > 0).all()
    with pytest.raises(ConfigError, match="does not have: 'tag'"):
        drawn(reader, tmp_path, balance="labels", label_column="tag")


def test_datasets_and_views_by_share(reader: StoreReader, tmp_path: Path) -> None:
    by_dataset = drawn(reader, tmp_path, dataset_weights={"inside": 3, "outside": 1})
    assert shares(reader, by_dataset.weights, "dataset") == pytest.approx({"inside": 0.75, "outside": 0.25})
    by_view = drawn(reader, tmp_path, view_weights={"clean": 1, "augmented:device": 2})
    device = reader.rows["view_parameters"].str.contains("device").to_numpy()
    clean = (reader.rows["view"] == "clean").to_numpy()
    assert by_view.weights[device].sum() == pytest.approx(2 / 3)
    assert by_view.weights[clean].sum() == pytest.approx(1 / 3)
    assert by_view.rows == ((device | clean) & reader.usable("train")).sum()
    alone = drawn(reader, tmp_path, dataset_weights={"inside": 1, "outside": 0}, view_weights={"clean": 1})
    assert shares(reader, alone.weights, "dataset") == pytest.approx({"inside": 1, "outside": 0})
    assert alone.weights[~clean].sum() == 0
    with pytest.raises(ConfigError, match="says nothing of outside"):
        drawn(reader, tmp_path, dataset_weights={"inside": 1})
    with pytest.raises(ConfigError, match="no training row has: 'mix'"):
        drawn(reader, tmp_path, view_weights={"clean": 1, "mix": 1})
    with pytest.raises(TrainingError, match="leaves no row"):
        drawn(reader, tmp_path, view_weights={"texture": 1})


def test_the_cap_and_the_warning_without_it(
    reader: StoreReader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys: dict[str, Any] = {"balance": "clusters", "clusters": 3, "epoch_rows": 10_000}
    with caplog.at_level(logging.WARNING):
        free = drawn(reader, tmp_path, **keys)
    assert "sampling.max_repeats limits it" in caplog.text
    caplog.clear()
    held = drawn(reader, tmp_path, **keys, max_repeats=150)
    assert not caplog.text
    assert free.weights.max() * 10_000 > 300
    assert held.weights.max() * 10_000 == pytest.approx(150)
    assert held.rows == 10_000


def test_clusters_of_a_completed_store_are_others(tmp_path: Path) -> None:
    made = labelled_store.content()
    part = StoreReader(made_store.make_store(tmp_path / "a", made, shard_rows=24))
    whole = StoreReader(
        made_store.make_store(
            tmp_path / "b", made_store.Content(made.rows, made.log_mel, made.embedding, ()), shard_rows=24
        )
    )
    config = SamplingConfig(balance="clusters", clusters=3)
    clusters_of(part, config, tmp_path)
    assert (clusters_of(whole, config, tmp_path).assignment >= 0).all()
    assert len(list(tmp_path.rglob(clusters.FILE))) == 2
