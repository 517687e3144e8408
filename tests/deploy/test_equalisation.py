"""Equalisation keeps the function and evens the ranges; what it may not touch it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from pipeline.deploy.equalisation import equalise, find_pairs
from pipeline.deploy.fidelity import embed_rows
from tests.deploy import onnx_nets


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_the_function_stays_and_the_outlier_goes(tmp_path: Path, by: str) -> None:
    inputs = onnx_nets.rows(32)
    plain = onnx_nets.chain(tmp_path / "plain.onnx", outlier=300.0)
    want = embed_rows(plain, inputs)
    before = onnx_nets.weights(plain)["first.weight"]
    assert equalise(plain, by=by, log_mels=inputs) == 2  # type: ignore[arg-type]
    np.testing.assert_allclose(embed_rows(plain, inputs), want, rtol=1e-4, atol=1e-4)
    after = onnx_nets.weights(plain)["first.weight"]
    largest = [np.abs(w).max(axis=(1, 2, 3)) for w in (before, after)]
    assert largest[0].max() / np.median(largest[0]) > 100
    assert largest[1].max() / np.median(largest[1]) < 10


def test_swept_weights_have_equal_ranges_on_both_sides_of_every_pair(tmp_path: Path) -> None:
    path = onnx_nets.chain(tmp_path / "plain.onnx", seed=3, outlier=40.0)
    equalise(path, by="weights", log_mels=onnx_nets.rows(2))
    found = onnx_nets.weights(path)
    # Nagel et al. (2019), equation 11: at the optimum both ranges of a channel are the same, up to what all
    # channels of a pair share.
    pairs = [
        (
            np.abs(found["first.weight"]).max(axis=(1, 2, 3)),
            np.abs(found["second.weight"]).max(axis=(1, 2, 3)),
        ),
        (
            np.abs(found["second.weight"]).max(axis=(1, 2, 3)),
            np.abs(found["third.weight"]).max(axis=(0, 2, 3)),
        ),
    ]
    for given, taken in pairs:
        ratio = np.log(given / taken)
        assert np.ptp(ratio) < 0.02


def test_activations_are_evened_against_the_weights_that_take_them(tmp_path: Path) -> None:
    inputs = onnx_nets.rows(16)
    path = onnx_nets.chain(tmp_path / "plain.onnx", outlier=300.0)
    equalise(path, by="activations", log_mels=inputs)
    found = onnx_nets.weights(path)
    padded = np.pad(inputs[:, 0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    activation = np.zeros(8)
    for channel in range(8):
        kernel, bias = found["first.weight"][channel, 0].astype(np.float64), found["first.bias"][channel]
        map_ = sum(
            kernel[i, j] * padded[:, i : i + onnx_nets.MELS, j : j + onnx_nets.FRAMES]
            for i in range(3)
            for j in range(3)
        )
        activation[channel] = np.maximum(map_ + bias, 0).max()
    ratio = np.log(activation / np.abs(found["second.weight"]).max(axis=(1, 2, 3)))
    assert np.ptp(ratio) < 1e-3


def test_only_lines_of_convolutions_are_pairs() -> None:
    def pairs(middle: list[onnx.NodeProto], outputs: list[str]) -> list[tuple[str, str]]:
        nodes = [onnx_nets.conv("first", "log_mel", "a"), *middle, onnx_nets.conv("second", "m", "b")]
        names = [f"{layer}.{part}" for layer in ("first", "second") for part in ("weight", "bias")]
        graph = helper.make_graph(
            nodes, "net", [], [helper.make_empty_tensor_value_info(name) for name in outputs],
            [helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [1.0]) for name in names],
        )  # fmt: skip
        return [(pair.first.name, pair.second.name) for pair in find_pairs(graph)]

    through = helper.make_node("MaxPool", ["a"], ["m"], kernel_shape=[2, 2])
    assert pairs([through], ["b"]) == [("first", "second")]
    assert pairs([helper.make_node("Sigmoid", ["a"], ["m"])], ["b"]) == []
    assert pairs([helper.make_node("Clip", ["a"], ["m"])], ["b"]) == []
    assert pairs([through, helper.make_node("Relu", ["a"], ["other"])], ["b"]) == [], "two take it"
    assert pairs([through], ["b", "m"]) == [], "it is an output"
