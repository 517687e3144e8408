"""A candidate's cost before it is trained is what the trained one's files cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline import recipe as recipes
from pipeline.config import Recipe, SearchConfig
from pipeline.errors import OssicleError
from pipeline.search.cost import Budget, CostMeter
from pipeline.students.base import Student
from pipeline.students.registry import build_student

pytest.importorskip("onnxruntime")


def cnn4(**changes: object) -> Recipe:
    return recipes.change(
        Recipe(), {"student.width": 0.25, "embed.frontend.mels": 16, "embed.window_seconds": 0.5, **changes}
    )


def test_parameters_and_macs_by_hand(tmp_path: Path) -> None:
    recipe = cnn4()
    student = build_student(recipe.student, 16).eval()
    macs = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(module, torch.nn.Conv2d):
            taken = module.weight.numel() // module.out_channels
            macs += output.numel() * taken
        elif isinstance(module, torch.nn.Linear):
            macs += output.numel() * module.in_features

    for module in student.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        student(torch.zeros(1, 1, 16, recipe.embed.frontend.frames(8_000)))
    found = CostMeter(tmp_path, SearchConfig()).costs(recipe, ["parameters", "macs"])
    assert found == {"parameters": sum(p.numel() for p in student.parameters()), "macs": macs}


def test_costs_are_measured_once_and_by_what_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = CostMeter(tmp_path, SearchConfig())
    first = meter.costs(cnn4(), ["macs"])
    assert meter.costs(cnn4(**{"embed.frontend.hop_length": 160}), ["macs"])["macs"] > first["macs"]
    monkeypatch.setattr(
        "pipeline.search.cost.build_student", lambda *arguments: pytest.fail("measured again")
    )
    assert meter.costs(cnn4(), ["macs"]) == first
    assert meter.costs(cnn4(**{"train.steps": 5, "loss.angle": 2.0}), ["macs"]) == first
    assert len(list(tmp_path.iterdir())) == 2


def test_flash_and_ram_are_those_of_the_exported_file(tmp_path: Path) -> None:
    # Wide enough for the weights to outweigh the graph around them; small maps for a quick export.
    recipe = cnn4(**{"student.width": 1.0, "embed.window_seconds": 0.2})
    found = CostMeter(tmp_path, SearchConfig()).costs(recipe, ["flash_kb", "ram_kb", "parameters"])
    weights_kb = found["parameters"] / 1024
    assert weights_kb < found["flash_kb"] < 2 * weights_kb + 40  # int8: a quarter of what float32 takes
    # While the first convolution runs, its input and its output live together.
    frames = recipe.embed.frontend.frames(3_200)
    first = next(m for m in build_student(recipe.student, 16).modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        output = first(torch.zeros(1, 1, 16, frames))
    assert found["ram_kb"] * 1024 >= 16 * frames + output.numel()
    assert found["ram_kb"] * 1024 <= 4 * (16 * frames + 4 * output.numel())


def test_a_limit_is_named_with_what_exceeds_it(tmp_path: Path) -> None:
    budget = Budget.of(SearchConfig(max_macs=1_000, max_flash_kb=8))
    assert budget.limits == {"macs": 1_000.0, "flash_kb": 8.0}
    assert budget.excess({"macs": 1_000.0}) is None
    assert budget.excess({"macs": 1_001.0, "flash_kb": 3.0}) == "macs 1,001 > 1,000"
    assert budget.excess({"parameters": 1e9}) is None


def test_a_network_that_cannot_be_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TooSmall(Student):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.max_pool2d(x, 64)

    monkeypatch.setattr("pipeline.search.cost.build_student", lambda *arguments: TooSmall(4))
    with pytest.raises(OssicleError) as caught:
        CostMeter(tmp_path, SearchConfig()).costs(cnn4(), ["macs"])
    assert "cnn4 at width 0.25 cannot be built for 16 mels x 26 frames" in str(caught.value)
