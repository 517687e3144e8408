"""Values and gradients of the losses against their authors' code, on the golden inputs and on broken ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses.angle_wise import angle_wise
from pipeline.losses.cosine_wise import cosine_wise
from pipeline.losses.distance_wise import distance_wise
from pipeline.losses.feature_wise import feature_wise
from tests.golden import golden_vectors as golden

State = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, State], Tensor]


def _total(student: Tensor, teacher: Tensor, _: State) -> Tensor:
    return distance_wise(student, teacher) + 2.0 * angle_wise(student, teacher)


def _projected(student: Tensor, teacher: Tensor, state: State) -> Tensor:
    return feature_wise(student @ state["projection.weight"].T + state["projection.bias"], teacher, "mse")


def _hint(student: Tensor, teacher: Tensor, state: State) -> Tensor:
    return feature_wise(student @ state["transform.weight"].flatten(1).T, teacher, "mse")


OURS: dict[str, Loss] = {
    "rkd_distance": lambda s, t, _: distance_wise(s, t),
    "rkd_distance_same_dim": lambda s, t, _: distance_wise(s, t),
    "rkd_angle": lambda s, t, _: angle_wise(s, t),
    "rkd_angle_same_dim": lambda s, t, _: angle_wise(s, t),
    "rkd_total": _total,
    "east_cosine": lambda s, t, _: cosine_wise(s, t, "l1"),
    "cosine_wise_mse": lambda s, t, _: cosine_wise(s, t, "mse"),
    "cosine_wise_smooth_l1": lambda s, t, _: cosine_wise(s, t, "smooth_l1"),
    "fitnet": _hint,
    "feature_mse_projected": _projected,
    "ssondo_cosine": lambda s, t, _: feature_wise(s, t, "cosine"),
    "ssondo_l1": lambda s, t, _: feature_wise(s, t, "l1"),
    "ssondo_mse": lambda s, t, _: feature_wise(s, t, "mse"),
}

WITH_DISTANCES = {"rkd_distance", "rkd_distance_same_dim", "rkd_total"}

# Where the published gradient is above this it is rounding noise or 1 / eps; ours must stay below.
EXPLODED = 1e3


def _case(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Tensor, Tensor, State]:
    spec, taps = golden.require("losses")
    entry = next((e for e in spec["losses"] if e["name"] == name), None)
    if entry is None:
        pytest.skip(f"the golden losses have no {name}")
    student, teacher = (_input(spec, entry[side]) for side in ("student", "teacher"))
    return spec, taps, entry, student, teacher, _state(spec, student, teacher)


def _input(spec: dict[str, Any], name: str) -> Tensor:
    recipe = spec["inputs"][name]
    return golden.tensor(recipe["seed"], recipe["shape"])


def _state(spec: dict[str, Any], student: Tensor, teacher: Tensor) -> State:
    wide, narrow, seed = teacher.shape[1], student.shape[1], spec["fill_seed"]
    shapes = {
        "projection.weight": (wide, narrow),
        "projection.bias": (wide,),
        "transform.weight": (wide, narrow, 1, 1),
    }
    return {name: golden.fill(name, shape, seed) for name, shape in shapes.items()}


def _value_and_gradient(loss: Loss, student: Tensor, teacher: Tensor, state: State) -> tuple[float, Tensor]:
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher, state)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient


@pytest.mark.parametrize("name", OURS)
def test_value_and_gradient_are_the_published_ones(name: str) -> None:
    spec, taps, _, student, teacher, state = _case(name)
    value, gradient = _value_and_gradient(OURS[name], student, teacher, state)
    tolerance = spec["tolerance"]
    assert value == pytest.approx(float(taps[f"value.{name}"]), rel=tolerance["value_rtol"])
    assert value == pytest.approx(float(taps[f"value64.{name}"]), rel=tolerance["value_rtol"])
    allowed = {"rtol": 0.0, "atol_relative_to_abs_max": tolerance["grad_atol_relative_to_abs_max"]}
    golden.assert_close(gradient, taps[f"grad.{name}"], allowed, f"gradient of {name}")


def _broken(student: Tensor, teacher: Tensor, case: str) -> tuple[Tensor, Tensor]:
    student, teacher = student.clone(), teacher.clone()
    if case.startswith("batch_"):
        rows = int(case.removeprefix("batch_"))
        return student[:rows], teacher[:rows]
    if case.startswith("student_times_"):
        return student * float(case.removeprefix("student_times_")), teacher
    side, damage = case.split("_", 1)
    for rows in {"student": [student], "teacher": [teacher], "both": [student, teacher]}[side]:
        if damage == "rows_0_and_1_equal":
            rows[1] = rows[0]
        elif damage == "all_rows_equal":
            rows[:] = rows[0].clone()
        elif damage == "row_0_zero":
            rows[0] = 0.0
        elif damage == "all_zero":
            rows[:] = 0.0
        else:
            raise KeyError(f"the golden losses know a case that this test does not: {case}")
    return student, teacher


@pytest.mark.parametrize("name", OURS)
def test_broken_inputs_give_the_published_value_where_it_is_sound_and_a_bounded_gradient(name: str) -> None:
    _, _, entry, student, teacher, state = _case(name)
    assert entry["degenerate"]
    for case, published in entry["degenerate"].items():
        value, gradient = _value_and_gradient(OURS[name], *_broken(student, teacher, case), state)
        largest = float(gradient.abs().max())
        assert math.isfinite(value) and bool(gradient.isfinite().all()), case
        # Where all rows of a side are equal the published distances are rounding noise over rounding noise.
        noise = case.endswith("all_rows_equal") and name in WITH_DISTANCES
        if math.isfinite(float(published["value"])) and not noise:
            # The published float32 distances keep half of their digits where two rows coincide.
            assert value == pytest.approx(published["value"], rel=1e-3, abs=1e-6), case
        if published["grad_abs_max"] >= EXPLODED:
            assert largest < EXPLODED * entry["grad_abs_max"], case
        elif case == "student_all_rows_equal":
            assert largest <= published["grad_abs_max"] * 1.001 + 1e-8, case
        elif not noise:
            # Gradients of 1e-8 are rounding noise around 0 there.
            assert largest == pytest.approx(published["grad_abs_max"], rel=1e-3, abs=1e-8), case
