"""Values and gradients of the losses against their authors' code, on the golden inputs and on broken ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses.feature_wise import feature_wise
from pipeline.losses.teacher_tags import teacher_tags
from tests.golden import golden_vectors as golden
from tests.golden.losses_of_spec import broken, case_of, names, ours, value_and_gradient

# Where the published gradient is above this it is rounding noise or 1 / eps; ours must stay below.
EXPLODED = 1e3
DISTANCES = ("rkd_distance", "rkd_total")
# The published 1e-9 inside the logarithm caps the loss of a student that is certain and wrong; ours goes on.
CAPPED = ("east_kd_soft", "student_times_1e4")


@pytest.mark.parametrize("name", names())
def test_value_and_gradient_are_the_published_ones(name: str) -> None:
    case = case_of(name)
    value, gradient = value_and_gradient(ours(name), case.student, case.teacher, case)
    _assert_published(value, gradient, case.taps, name, case.spec["tolerance"])


def _assert_published(
    value: float, gradient: Tensor, taps: dict[str, Any], name: str, tolerance: dict[str, float]
) -> None:
    allowed = tolerance["value_rtol"]
    for tap in (f"value.{name}", f"value64.{name}"):
        if tap in taps:
            assert value == pytest.approx(float(taps[tap]), rel=allowed)
    published = float(taps[f"value.{name}"])
    golden.report("losses", f"value of {name}", abs(value - published) / abs(published), allowed)
    relative = {"rtol": 0.0, "atol_relative_to_abs_max": tolerance["grad_atol_relative_to_abs_max"]}
    golden.assert_close(gradient, taps[f"grad.{name}"], relative, f"gradient of {name}")


@pytest.mark.parametrize("name", names())
def test_broken_inputs_give_the_published_value_where_it_is_sound_and_a_bounded_gradient(name: str) -> None:
    case = case_of(name)
    for damage, published in case.entry.get("degenerate", {}).items():
        student, teacher = broken(case, damage)
        value, gradient = value_and_gradient(ours(name), student, teacher, case)
        largest = float(gradient.abs().max())
        assert math.isfinite(value) and bool(gradient.isfinite().all()), damage
        if name.startswith(CAPPED[0]) and damage == CAPPED[1]:
            assert value > published["value"]
            continue
        # Where all rows of a side are equal the published distances are rounding noise over rounding noise.
        noise = damage.endswith("all_rows_equal") and name.startswith(DISTANCES)
        # Nor is the constant that stands for "masked" a value of the loss.
        if math.isfinite(float(published["value"])) and abs(published["value"]) < 1e8 and not noise:
            # The published float32 distances keep half of their digits where two rows coincide.
            assert value == pytest.approx(published["value"], rel=1e-3, abs=1e-6), damage
        if published["grad_abs_max"] >= EXPLODED:
            assert largest < EXPLODED * case.entry["grad_abs_max"], damage
        elif damage == "student_all_rows_equal":
            assert largest <= published["grad_abs_max"] * 1.001 + 1e-8, damage
        elif not noise:
            # Gradients of 1e-8 are rounding noise around 0 there.
            assert largest == pytest.approx(published["grad_abs_max"], rel=1e-3, abs=1e-8), damage


MIXED = {
    "mixup_ssondo_cosine": lambda s, t, weight: feature_wise(s, t, "cosine", weight),
    "mixup_ssondo_mse": lambda s, t, weight: feature_wise(s, t, "mse", weight),
    "mixup_efficientat_bce": lambda s, t, weight: teacher_tags(s, t, "bce", row_weight=weight),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_loss_mixed_over_two_targets_is_the_published_one(name: str) -> None:
    spec, taps = golden.require("losses")
    source = next(entry for entry in spec["losses"] if entry["name"] == SOURCE[name])
    case = case_of(source["name"])
    share = torch.from_numpy(taps["mixup.lambda"]).flatten().float()
    partners = torch.from_numpy(taps["mixup.permutation"]).long()

    def mixed(student: Tensor, teacher: Tensor, _: object) -> Tensor:
        one, other = (
            MIXED[name](student, t, w) for t, w in ((teacher, share), (teacher[partners], 1 - share))
        )
        return one + other

    value, gradient = value_and_gradient(mixed, case.student, case.teacher, case)
    _assert_published(value, gradient, taps, name, spec["tolerance"])


SOURCE = {
    "mixup_ssondo_cosine": "ssondo_cosine",
    "mixup_ssondo_mse": "ssondo_mse",
    "mixup_efficientat_bce": "efficientat_kd",
}
