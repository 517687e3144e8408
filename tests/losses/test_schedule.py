"""Weights as pure functions of the step: values, refusals, what is computed, logged and validated with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pipeline import recipe as recipes
from pipeline.config import LossConfig, Recipe
from pipeline.errors import ConfigError
from pipeline.loss_config import FIRST_KEYS
from pipeline.losses.angle_wise import angle_wise
from pipeline.losses.feature_wise import feature_wise
from pipeline.losses.weighted import WeightedLoss
from pipeline.weight_schedule import WeightSchedule
from tests.losses.test_laws import draw

EMBEDDING, PROJECTION, TARGET = draw(0, 12, 6), draw(1, 12, 9), draw(2, 12, 9)
LINEAR = {"kind": "linear", "start": 2.0, "end": 0.5, "first_step": 10, "last_step": 40}


QUARTER = 0.5 + 1.5 * (1 + math.cos(math.pi / 3)) / 2
STEPS = {"kind": "steps", "values": [[0, 1.0], [5, 0.0], [9, 3.0]]}


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (LINEAR, {0: 2.0, 10: 2.0, 20: 1.5, 25: 1.25, 40: 0.5, 10**6: 0.5}),
        ({**LINEAR, "kind": "cosine"}, {0: 2.0, 10: 2.0, 20: QUARTER, 25: 1.25, 40: 0.5, 99: 0.5}),
        (STEPS, {0: 1.0, 4: 1.0, 5: 0.0, 8: 0.0, 9: 3.0, 10**6: 3.0}),
    ],
)
def test_weights_of_steps(schedule: dict[str, Any], wanted: dict[int, float]) -> None:
    config = LossConfig(angle=schedule, feature=1)
    assert {step: config.at(step)["angle"] for step in wanted} == pytest.approx(wanted)
    assert config.at(None)["angle"] == pytest.approx(wanted[max(wanted)])
    assert config.at(7)["feature"] == 1.0


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "linear"},
        {"kind": "linear", "first_step": 9, "last_step": 9},
        {"kind": "cosine", "last_step": 9, "end": -1.0},
        {"kind": "cosine", "last_step": 9, "values": [[0, 1.0]]},
        {"kind": "steps"},
        {"kind": "steps", "values": [[1, 1.0]]},
        {"kind": "steps", "values": [[0, 1.0], [0, 2.0]]},
        {"kind": "steps", "values": [[0, 1.0]], "last_step": 9},
        {"kind": "exponential", "last_step": 9},
        {"kind": "linear", "last_step": 9, "from": 0.0},
        math.inf,
        "much",
    ],
)
def test_impossible_weights_are_refused_by_name(schedule: Any) -> None:
    with pytest.raises(ConfigError, match=r"loss\.angle"):
        recipes.change(Recipe(), {"loss.angle": schedule})


def test_a_step_without_any_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="every loss weight is 0 at step 5"):
        LossConfig(feature={"kind": "steps", "values": [[0, 1.0], [5, 0.0]]})
    between = {"kind": "steps", "values": [[0, 0.0], [5, 1.0]]}
    LossConfig(feature={"kind": "steps", "values": [[0, 1.0], [5, 0.0]]}, angle=between)


def test_a_schedule_survives_a_recipe_and_names_the_run_while_defaults_do_not() -> None:
    recipe = recipes.change(Recipe(), {"loss.angle": LINEAR})
    again = recipes.change(recipe, {"loss.distance": 1.0})
    assert isinstance(again.loss.angle, WeightSchedule)
    assert again.loss.angle == recipe.loss.angle
    assert set(Recipe().loss.counted()) == set(FIRST_KEYS)
    assert recipe.loss.counted()["angle"]["kind"] == "linear"
    assert set(LossConfig(kernel=1).counted()) == {*FIRST_KEYS, "kernel"}
    assert set(LossConfig(distance_correlation=1).counted()) == {*FIRST_KEYS, "distance_correlation"}
    # What only a term looks at counts where the term does.
    assert set(LossConfig(hinton_temperature=2, angle_triplets=9).counted()) == set(FIRST_KEYS)
    tags = LossConfig(tags=1, tags_temperature=2, hinton_temperature=2, logits="passt")
    assert set(tags.counted()) == {*FIRST_KEYS, "tags", "tags_temperature"}


def test_training_uses_and_logs_the_weight_of_the_step_and_validation_that_of_the_end() -> None:
    loss = WeightedLoss(LossConfig(angle=LINEAR, feature=1))
    angle, feature = angle_wise(EMBEDDING, TARGET).item(), feature_wise(PROJECTION, TARGET).item()
    for step, weight in ((0, 2.0), (20, 1.5), (50, 0.5)):
        loss.train()
        loss.at_step(step, 100)
        total, terms = loss(EMBEDDING, PROJECTION, TARGET)
        assert total.item() == pytest.approx(weight * angle + feature, rel=1e-6)
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(
            {"angle": angle, "feature": feature, "angle_weight": weight}
        )
        validation, terms = loss.eval()(EMBEDDING, PROJECTION, TARGET)
        assert validation.item() == pytest.approx(0.5 * angle + feature, rel=1e-6)
        assert set(terms) == {"angle", "feature"}


def test_a_term_off_at_this_step_is_logged_and_gives_a_gradient_of_zero() -> None:
    config = LossConfig(feature={"kind": "steps", "values": [[0, 0.0], [5, 1.0]]}, angle=1)
    loss = WeightedLoss(config)
    loss.at_step(3, 10)
    projection = PROJECTION.clone().requires_grad_()
    total, terms = loss(EMBEDDING, projection, TARGET)
    total.backward()
    assert terms["feature"].item() > 0
    assert projection.grad is not None
    assert projection.grad.abs().max() == 0
    assert loss.needs_projection


def test_triplets_are_a_function_of_seed_and_step_and_of_nothing_else() -> None:
    def value(seed: int, step: int, training: bool = True) -> float:
        loss = WeightedLoss(LossConfig(angle=1, feature=0, angle_triplets=50), seed).train(training)
        loss.at_step(step, 100)
        torch.rand(3)  # the global generator is nobody's
        return float(loss(EMBEDDING, None, TARGET)[0])

    assert value(0, 3) == value(0, 3)
    assert len({value(0, 3), value(0, 4), value(1, 3), value(0, 3, training=False)}) == 4
    assert value(0, 3, training=False) == value(0, 9, training=False)
    whole = WeightedLoss(LossConfig(angle=1, feature=0, angle_triplets=12**3))
    assert whole(EMBEDDING, None, TARGET)[0].item() == angle_wise(EMBEDDING, TARGET).item()
