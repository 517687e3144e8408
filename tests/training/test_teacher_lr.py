"""The Teacher_LR control against a multinomial regression written out, minimised by torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import TrainingError
from pipeline.store.reader import StoreReader
from pipeline.training.job import run_job
from tests.training.small_store import CLASSES, small_job, small_recipe, write_store


def rows_of(store: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings, labels and splits of the labelled rows."""
    reader = StoreReader(store)
    embedding = np.concatenate(
        [reader.read_shard(shard, ("embedding",))["embedding"] for shard in range(reader.meta.shards)]
    )
    kept = ((reader.rows["label"] != "") & (reader.rows["status"] == "ok")).to_numpy(dtype=bool)
    labels, splits = (reader.rows[name].astype(str).to_numpy()[kept] for name in ("label", "split"))
    return embedding[kept].astype(np.float64), labels, splits


def test_equals_the_penalised_likelihood_written_out(tmp_path: Path) -> None:
    recipe = small_recipe(**{"train.control": "teacher_lr", "targets.transform": "none"})
    store = write_store(tmp_path / "store", recipe, rows=400)
    summary = run_job(small_job(store, tmp_path / "run", recipe)).summary
    embedding, labels, splits = rows_of(store)
    train = splits == "train"
    scaled = torch.from_numpy((embedding - embedding[train].mean(axis=0)) / embedding[train].std(axis=0))
    truth = torch.from_numpy(np.array([CLASSES.index(label) for label in labels]))
    weight = torch.zeros(len(CLASSES), scaled.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(CLASSES), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = scaled[train] @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, truth[train], reduction="sum")
        loss = loss + 0.5 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        scores = (scaled[~train] @ weight.T + bias).softmax(dim=1)
    hits = (scores.argmax(dim=1) == truth[~train]).double().mean()
    assert summary["accuracy"] == pytest.approx(float(hits), abs=1.01 / int((~train).sum()))
    with np.load(tmp_path / "run" / "held_out.npz") as held_out:
        answers = torch.from_numpy(held_out["logits"]).double().softmax(dim=1)
        keys = StoreReader(store).rows.set_index("key")["label"].astype(str)
        assert [CLASSES[code] for code in held_out["truth"]] == keys.loc[held_out["clip_id"]].tolist()
    # The clips stand there by name, and names of this store rise with its rows.
    torch.testing.assert_close(answers, scores, atol=0.02, rtol=0)
    assert summary["control"] == "teacher_lr"
    assert summary["labelled_rows"] == int(train.sum())
    assert summary["converged"]
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == sorted(CLASSES)
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_rows_of_several_labels(tmp_path: Path) -> None:
    recipe = small_recipe(**{"train.control": "teacher_lr", "train.label_kind": "bce"})
    store = write_store(tmp_path / "store", recipe)
    summary = run_job(small_job(store, tmp_path / "run", recipe)).summary
    assert summary["mean_average_precision"] > 0.6
    assert summary["targets"]["target_dim"] == 8


def test_without_validation_rows_there_is_no_score(tmp_path: Path) -> None:
    recipe = small_recipe(**{"train.control": "teacher_lr"})
    store = write_store(tmp_path / "store", recipe, validation=False)
    with pytest.raises(TrainingError, match="held-out clips"):
        run_job(small_job(store, tmp_path / "run", recipe))
