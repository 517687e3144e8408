"""Mapping heads: shapes, independence of several teachers' heads, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import TargetsConfig
from pipeline.errors import ConfigError
from pipeline.training.projector import HINT_BOUND, HintRegressor, build_head, save_head

BATCH, DIM = 5, 12


@pytest.mark.parametrize("kind", ["linear", "mlp", "hint"])
@pytest.mark.parametrize("widths", [(7,), (7, 3, 9)])
def test_a_part_of_the_target_trains_its_own_head_alone(kind: str, widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = build_head(TargetsConfig(head=kind, head_hidden=16, head_dropout=0.0), DIM, widths)
    got = head(torch.randn(BATCH, DIM))
    assert got.shape == (BATCH, sum(widths))
    got.split(widths, dim=1)[0].square().sum().backward()
    trained = sum(int((p.grad != 0).sum()) for p in head.parameters() if p.grad is not None)
    alone = build_head(TargetsConfig(head=kind, head_hidden=16, head_dropout=0.0), DIM, widths[:1])
    assert 0 < trained <= sum(p.numel() for p in alone.parameters())


def test_hint_regressor_is_a_convolution_without_bias() -> None:
    torch.manual_seed(0)
    head = HintRegressor(DIM, 8)
    embedding = torch.randn(BATCH, DIM)
    want = torch.nn.functional.conv2d(embedding[:, :, None, None], head.linear.weight[:, :, None, None])
    torch.testing.assert_close(head(embedding), want[:, :, 0, 0])
    assert head.linear.bias is None
    assert HINT_BOUND / 2 < float(head.linear.weight.detach().abs().max()) <= HINT_BOUND


def test_no_head_wants_equal_widths() -> None:
    head = build_head(TargetsConfig(head="none"), DIM, (DIM, DIM))
    embedding = torch.randn(BATCH, DIM)
    assert torch.equal(head(embedding), torch.cat([embedding, embedding], dim=1))
    assert not list(head.parameters())
    with pytest.raises(ConfigError, match="widths differ") as raised:
        build_head(TargetsConfig(head="none"), DIM, (DIM, 8))
    assert "student.embedding_dim" in str(raised.value.run)


def test_dropout_only_while_training() -> None:
    torch.manual_seed(0)
    head = build_head(TargetsConfig(head="mlp", head_hidden=64, head_dropout=0.5), DIM, (4,))
    embedding = torch.randn(BATCH, DIM)
    assert not torch.equal(head(embedding), head(embedding))
    head.eval()
    assert torch.equal(head(embedding), head(embedding))


def test_saved_weights_are_the_heads(tmp_path: Path) -> None:
    head = build_head(TargetsConfig(head="mlp", head_hidden=6), DIM, (4, 5))
    save_head(tmp_path / "head.safetensors", head)
    saved = load_file(tmp_path / "head.safetensors")
    assert saved.keys() == head.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in head.state_dict().items())
