"""The exported bank in ONNX Runtime against numpy: scores, decisions, and what it has learnt after each call."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.config import LogMelConfig
from pipeline.errors import ConfigError
from pipeline.prototypes.bank import Features, Int8Rows, Metric, NeighbourBank, PrototypeBank, similarities
from pipeline.prototypes.log_mel_encoder import log_mel_encoder
from pipeline.prototypes.onnx_bank import write_bank

FRONTEND = LogMelConfig(mels=12)
CLASSES = ["bell", "door", "rain", ""]
DIM = 2 * FRONTEND.mels


def log_mels(number: int, seed: int, frames: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Return (number, 1, mels, frames) of three kinds of sound, and their classes."""
    rng = np.random.default_rng(seed)
    classes = np.arange(number) % 3
    colour = np.random.default_rng(1).normal(0.0, 2.0, (3, FRONTEND.mels))[classes][:, None, :, None]
    return (rng.normal(-5.0, 1.0, (number, 1, FRONTEND.mels, frames)) + colour).astype(np.float32), classes


def statistics(log_mel: np.ndarray) -> np.ndarray:
    """Return means and deviations over time, by numpy's own."""
    wide = log_mel[:, 0].astype(np.float64)
    return np.concatenate([wide.mean(axis=2), wide.std(axis=2)], axis=1).astype(np.float32)


def open_bank(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def results(session: onnxruntime.InferenceSession, **given: np.ndarray) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    feeds = {name.replace("__", "."): value for name, value in given.items()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def taught(metric: Metric, scaling: str = "raw") -> tuple[Features, PrototypeBank]:
    heard, classes = log_mels(15, seed=2)
    features = Features.fitted(metric, scaling, statistics(heard))  # type: ignore[arg-type]
    return features, PrototypeBank.empty(metric, len(CLASSES), DIM).enrolled(
        features(statistics(heard)), classes
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scaling", ["raw", "centred", "standardised"])
def test_prototypes_in_onnx_are_numpys(metric: Metric, scaling: str, tmp_path: Path) -> None:
    features, bank = taught(metric, scaling)
    path = tmp_path / "bank.onnx"
    write_bank(log_mel_encoder(FRONTEND), path, features=features, bank=bank, classes=CLASSES)
    session = open_bank(path)
    for batch, frames in ((1, 1), (4, 30), (7, 211)):
        asked, _ = log_mels(batch, seed=3, frames=frames)
        found = results(session, log_mel=asked)
        x = features(statistics(asked))
        np.testing.assert_allclose(found["feature"], x, rtol=1e-3, atol=1e-4)
        want = bank.scores(x)
        assert np.isneginf(found["scores"][:, 3]).all()
        np.testing.assert_allclose(found["scores"][:, :3], want[:, :3], rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(found["class"], want.argmax(axis=1))
        np.testing.assert_allclose(found["confidence"], want.max(axis=1), rtol=1e-3, atol=1e-3)
        # Nothing was taught, so the bank is as it was.
        np.testing.assert_allclose(found["prototypes.next"], bank.prototypes, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(found["counts.next"], bank.counts)


@pytest.mark.parametrize("int8", [False, True])
def test_a_device_learns_a_new_class_from_five_clips(int8: bool, tmp_path: Path) -> None:
    features, bank = taught("cosine", "centred")
    path = tmp_path / "bank.onnx"
    write_bank(log_mel_encoder(FRONTEND), path, features=features, bank=bank, classes=CLASSES, int8=int8)
    session = open_bank(path)
    rng = np.random.default_rng(9)
    colour = np.linspace(6.0, -6.0, FRONTEND.mels)[None, None, :, None]
    new = (rng.normal(-5.0, 1.0, (12, 1, FRONTEND.mels, 30)) + colour).astype(np.float32)
    state: dict[str, np.ndarray] = {}
    # Two at once, then one after the other.
    for rows in ([0, 1], [2], [3], [4]):
        found = results(session, log_mel=new[rows], enrol=np.full(len(rows), 3, np.int64), **state)
        state = {name.removesuffix(".next"): value for name, value in found.items() if name.endswith(".next")}
    mean = features(statistics(new[:5])).mean(axis=0)
    if int8:
        assert state["prototypes"].dtype == np.int8
        learnt = state["prototypes"][3] * state["scales"][3]
        # Rounded four times, an error of half a step each, the earlier ones weighing less and less.
        assert np.abs(learnt - mean).max() <= 1.5 * np.abs(mean).max() / 127.0
    else:
        np.testing.assert_allclose(state["prototypes"][3], mean, rtol=1e-3, atol=1e-5)
    assert state["counts"].tolist() == [5.0, 5.0, 5.0, 5.0]
    assert (results(session, log_mel=new[5:], **state)["class"] == 3).all()
    before, classes = log_mels(30, seed=4)
    np.testing.assert_array_equal(results(session, log_mel=before, **state)["class"], classes)
    # The bank was given, not kept: without it the file knows what it knew.
    assert not (results(session, log_mel=new[5:])["class"] == 3).any()


def test_rejection_is_an_input_and_a_bank_may_have_any_number_of_classes(tmp_path: Path) -> None:
    features, bank = taught("cosine")
    path = tmp_path / "bank.onnx"
    write_bank(log_mel_encoder(FRONTEND), path, features=features, bank=bank, classes=CLASSES)
    session = open_bank(path)
    asked, _ = log_mels(9, seed=5)
    scores = results(session, log_mel=asked)["confidence"]
    cut = np.median(scores).astype(np.float32)
    found = results(session, log_mel=asked, threshold=np.array([cut]))
    np.testing.assert_array_equal(found["class"] == -1, scores < cut)
    two = results(session, log_mel=asked, prototypes=bank.prototypes[:2], counts=bank.counts[:2])
    assert two["scores"].shape == (9, 2)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_int8_bank_computes_numpys_integers(metric: Metric, tmp_path: Path) -> None:
    features, bank = taught(metric)
    path = tmp_path / "bank.onnx"
    write_bank(log_mel_encoder(FRONTEND), path, features=features, bank=bank, classes=CLASSES, int8=True)
    asked, _ = log_mels(40, seed=6)
    found = results(open_bank(path), log_mel=asked)
    x = Int8Rows.of(found["feature"]).dequantised()
    want = similarities(metric, x, Int8Rows.of(bank.prototypes).dequantised())
    np.testing.assert_allclose(found["scores"][:, :3], want[:, :3], rtol=1e-4, atol=1e-3)
    # And little is lost by it.
    exact = bank.scores(found["feature"])[:, :3]
    assert (want[:, :3].argmax(axis=1) == exact.argmax(axis=1)).mean() >= 0.95
    floats = tmp_path / "float.onnx"
    write_bank(log_mel_encoder(FRONTEND), floats, features=features, bank=bank, classes=CLASSES)
    sizes = {p: sum(len(t.raw_data) for t in onnx.load(str(p)).graph.initializer if t.name == "prototypes")
             for p in (path, floats)}  # fmt: skip
    assert sizes[floats] == 4 * sizes[path]


@pytest.mark.parametrize(("metric", "int8"), [("cosine", False), ("euclidean", False), ("cosine", True)])
def test_neighbours_in_onnx_are_numpys(metric: Metric, int8: bool, tmp_path: Path) -> None:
    heard, classes = log_mels(15, seed=2)
    features = Features.fitted(metric, "centred", statistics(heard))
    rows = features(statistics(heard))
    bank = NeighbourBank(metric, rows, classes.astype(np.int64), 3, neighbours=3, threshold=-4.0)
    path = tmp_path / "bank.onnx"
    write_bank(log_mel_encoder(FRONTEND), path, features=features, bank=bank, classes=CLASSES[:3], int8=int8)
    session = open_bank(path)
    asked, _ = log_mels(40, seed=7)
    found = results(session, log_mel=asked)
    x = found["feature"]
    if int8:
        near = similarities(metric, Int8Rows.of(x).dequantised(), Int8Rows.of(rows).dequantised())
        near = np.sort(near, axis=1)[:, ::-1][:, :3]
        np.testing.assert_allclose(found["confidence"], near.mean(axis=1), rtol=1e-4, atol=1e-4)
    else:
        np.testing.assert_allclose(found["scores"], bank.scores(x), atol=1e-6)
        np.testing.assert_allclose(found["confidence"], bank.confidence(x), rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(found["class"], bank.predict(x))
    # A row of class -1 is a free slot: it has no vote.
    free = np.where(np.arange(15) < 12, bank.row_classes, -1)
    fewer = NeighbourBank(metric, rows[:12], bank.row_classes[:12], 3, 3)
    again = results(session, log_mel=asked, row_classes=free)
    if not int8:
        np.testing.assert_allclose(again["scores"], fewer.scores(x), atol=1e-6)


def test_the_file_says_what_it_holds_and_a_strange_encoder_is_refused(tmp_path: Path) -> None:
    features, bank = taught("cosine")
    path = tmp_path / "bank.onnx"
    encoder = log_mel_encoder(FRONTEND)
    write_bank(encoder, path, features=features, bank=bank, classes=CLASSES, described={"shots": 5})
    properties = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    told = json.loads(properties["ossicle.bank"])
    assert told["classes"] == CLASSES and told["kind"] == "prototypes" and told["shots"] == 5
    assert "ossicle.frontend" in properties
    wide = Features.fitted("cosine", "raw", np.ones((2, DIM + 1), np.float32))
    with pytest.raises(ConfigError, match="another width"):
        write_bank(encoder, tmp_path / "no.onnx", features=wide, bank=bank, classes=CLASSES)
    encoder.graph.output[0].name = "logits"
    with pytest.raises(ConfigError, match="no output called embedding"):
        write_bank(encoder, tmp_path / "no.onnx", features=features, bank=bank, classes=CLASSES)
    assert not (tmp_path / "no.onnx").exists()
