"""Mapping heads against their authors' code."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.projector import MlpHead
from tests.golden import golden_vectors as golden

HEADS = golden.folders("ssondo_head")


@pytest.mark.parametrize("name", HEADS)
def test_mlp_head(name: str) -> None:
    spec, taps = golden.require(name)
    config = spec["config"]
    head = MlpHead(config["emb_size"], config["teacher_dim"], config["hidden"]).eval()
    state = golden.filled_state(spec, taps)
    assert {key: list(value.shape) for key, value in head.state_dict().items()} == {
        entry["name"]: entry["shape"] for entry in spec["state"]
    }
    head.load_state_dict(state)
    given = golden.tensor(spec["inputs"][0]["seed"], spec["inputs"][0]["shape"])
    with torch.no_grad():
        golden.assert_close(head.mlp(given), taps["mlp"], spec["tolerance"], "mlp")
        golden.assert_close(head(given), taps["output"], spec["tolerance"], "output")


@pytest.mark.parametrize("name", HEADS)
def test_published_size(name: str) -> None:
    """The published configuration has the published number of parameters."""
    spec, _ = golden.require(name)
    published = spec["published_config"]
    with torch.device("meta"):
        head = MlpHead(published["emb_size"], published["teacher_dim"], published["hidden"])
    assert sum(value.numel() for value in head.parameters()) == published["parameters"]
