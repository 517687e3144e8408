"""Effective rank, neighbour overlap, normalisation and the learning rate against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from pipeline.config import TrainConfig
from pipeline.errors import TrainingError
from pipeline.neighbours import neighbour_overlap
from pipeline.training.collapse import effective_rank, is_collapsed, warn_if_collapsed
from pipeline.training.normalisation import global_statistics
from pipeline.training.optimiser import build_optimiser, learning_rate
from pipeline.training.projector import Projector


def test_effective_rank_equals_the_literal_formula() -> None:
    matrix = np.random.default_rng(0).standard_normal((60, 12)) * np.geomspace(3, 0.1, 12)
    centred = matrix - matrix.mean(axis=0)
    root = np.sqrt(np.linalg.eigvalsh(centred.T @ centred))
    share = root / root.sum()
    want = np.exp(-(share * np.log(share)).sum())
    assert effective_rank(torch.from_numpy(matrix)) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_directions_counts_them(rank: int) -> None:
    orthonormal = np.linalg.qr(np.random.default_rng(1).standard_normal((64, rank)) - 0.0)[0]
    centred = orthonormal - orthonormal.mean(axis=0)
    equal = np.linalg.qr(centred)[0] @ np.linalg.qr(np.random.default_rng(2).standard_normal((16, rank)))[0].T
    assert effective_rank(torch.from_numpy(equal)) == pytest.approx(rank, rel=1e-6)


def test_a_constant_embedding_has_rank_0_despite_rounding() -> None:
    constant = (
        torch.full((100, 32), 3.0) + torch.randn(100, 32, generator=torch.Generator().manual_seed(0)) * 1e-7
    )
    assert effective_rank(constant) == 0.0


def test_collapse_is_warned_and_health_is_not(caplog: pytest.LogCaptureFixture) -> None:
    assert warn_if_collapsed(0.0, 500, 128, "a run")
    assert "a run" in caplog.text
    caplog.clear()
    healthy = effective_rank(torch.randn(500, 128, generator=torch.Generator().manual_seed(0)))
    assert not warn_if_collapsed(healthy, 500, 128, "a run")
    assert not caplog.text
    assert not is_collapsed(1.0, rows=2, dimension=128)


def test_neighbour_overlap_equals_scikit_learn() -> None:
    generator = np.random.default_rng(5)
    first = generator.standard_normal((80, 6)).astype(np.float32)
    second = (first + generator.standard_normal((80, 6)) * 0.5).astype(np.float32)
    sets = []
    for rows in (first, second):
        found = NearestNeighbors(n_neighbors=8, metric="cosine").fit(rows).kneighbors(return_distance=False)
        sets.append([set(row) for row in found])
    want = np.mean([len(a & b) / 8 for a, b in zip(*sets, strict=True)])
    got = neighbour_overlap(torch.from_numpy(first), torch.from_numpy(second), neighbours=8)
    assert got == pytest.approx(want, abs=1e-9)
    assert neighbour_overlap(torch.from_numpy(first), torch.from_numpy(first * 3)) == 1.0


def test_normalisation_equals_numpy_over_everything() -> None:
    pieces = [
        np.random.default_rng(s).normal(-4, 3, (n, 5, 7)).astype(np.float16)
        for s, n in ((0, 9), (1, 1), (2, 30))
    ]
    everything = np.concatenate(pieces).astype(np.float64)
    mean, deviation = global_statistics([*pieces[:1], np.zeros((0, 5, 7)), *pieces[1:]])
    assert mean == pytest.approx(everything.mean(), abs=1e-12)
    assert deviation == pytest.approx(everything.std(), rel=1e-12)


@pytest.mark.parametrize("pieces", [[], [np.full((4, 2, 3), -11.5, dtype=np.float16)]])
def test_nothing_to_normalise_with_is_refused(pieces: list[np.ndarray]) -> None:
    with pytest.raises(TrainingError):
        global_statistics(pieces)


@pytest.mark.parametrize("warmup", [1, 10])
def test_learning_rate_equals_torchs_schedulers(warmup: int) -> None:
    config = TrainConfig(steps=60, warmup_steps=warmup, learning_rate=0.3, final_learning_rate_share=0.01)
    optimiser = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedulers = [
        LinearLR(optimiser, start_factor=1 / warmup, total_iters=max(warmup - 1, 1)),
        CosineAnnealingLR(optimiser, T_max=60 - warmup - 1, eta_min=0.003),
    ]
    schedule = SequentialLR(optimiser, schedulers, milestones=[warmup])
    for step in range(60):
        assert learning_rate(step, config) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9), step
        optimiser.step()
        schedule.step()


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    config = TrainConfig(steps=10, warmup_steps=0, learning_rate=0.1, final_learning_rate_share=0.0)
    assert learning_rate(0, config) == 0.1
    assert learning_rate(9, config) == pytest.approx(0.0, abs=1e-12)


def test_norms_and_biases_are_not_decayed() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), Projector(4, 2))
    groups = build_optimiser(model, TrainConfig(weight_decay=0.5)).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.5 for p in g["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert names == {"0.weight", "2.linear.weight"}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
