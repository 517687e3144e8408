"""Our loss for each entry of the golden losses, its inputs by the spec's recipe, and the spec's broken inputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses.angle_wise import angle_wise
from pipeline.losses.contrastive import contrastive
from pipeline.losses.cosine_wise import cosine_wise
from pipeline.losses.distance_correlation import distance_correlation, distance_correlation_over_time
from pipeline.losses.distance_wise import distance_wise
from pipeline.losses.feature_wise import feature_wise
from pipeline.losses.hinton import hinton, soft_targets
from pipeline.losses.labels import label_loss
from pipeline.losses.teacher_tags import teacher_tags
from tests.golden import golden_vectors as golden

Entry = dict[str, Any]
Loss = Callable[[Tensor, Tensor, "Case"], Tensor]


class Case:
    """One entry of the spec: its inputs, drawn and derived as the spec says, and the rows of them that are used."""

    def __init__(self, spec: dict[str, Any], taps: dict[str, Any], entry: Entry) -> None:
        self.spec, self.taps, self.entry = spec, taps, entry
        self.student, self.teacher = self.input(entry["student"]), self.input(entry["teacher"])
        self.rows = slice(None)

    def input(self, name: str) -> Tensor:
        recipe = self.spec["inputs"][name]
        return golden.tensor(recipe["seed"], recipe["shape"])

    def fill(self, name: str) -> Tensor:
        """Return a weight that ``derived`` describes as fill("NAME",(shape),fill_seed)."""
        found = re.search(r"\(([\d,]+)\),fill_seed", self.spec["derived"][name])
        assert found is not None
        shape = [int(size) for size in found[1].split(",") if size]
        return golden.fill(name, shape, self.spec["fill_seed"])

    @property
    def labels(self) -> Tensor:
        if self.entry["labels"] == "multilabel":
            found = re.search(r"multilabel_from > ([\d.]+)", self.spec["derived"]["multilabel"])
            assert found is not None
            return (self.input("multilabel_from") > float(found[1])).float()[self.rows]
        return self.input("labels_from").argmax(dim=1)[self.rows]

    @property
    def clusters(self) -> Tensor:
        return self.input("cluster_from").argmax(dim=1)[self.rows]

    @property
    def temperature(self) -> float:
        return float(self.entry["temperature"])


def _projected(student: Tensor, teacher: Tensor, case: Case) -> Tensor:
    projected = student @ case.fill("projection.weight").T + case.fill("projection.bias")
    return feature_wise(projected, teacher, "mse")


def _contrastive(kind: Any) -> Loss:
    return lambda s, t, case: contrastive(
        s, t, kind, case.temperature, case.clusters if "clusters" in case.entry else None
    )


def _efficientat(student: Tensor, teacher: Tensor, case: Case) -> Tensor:
    share = case.entry["kd_lambda"]
    tags = teacher_tags(student, teacher, "bce", case.temperature)
    return share * label_loss(student, case.labels, "bce") + (1 - share) * tags


def _hinton(student: Tensor, teacher: Tensor, case: Case) -> Tensor:
    alpha = case.entry["alpha"]
    # The mirrored convention must say the same.
    mirrored = hinton(
        student, teacher, case.labels, alpha=1 - alpha, alpha_weighs="teacher", temperature=case.temperature
    )
    value = hinton(
        student, teacher, case.labels, alpha=alpha, alpha_weighs="labels", temperature=case.temperature
    )
    assert mirrored.item() == pytest.approx(value.item(), rel=1e-6)
    return value


def _cpjku(student: Tensor, teacher: Tensor, case: Case) -> Tensor:
    return hinton(
        student, teacher, case.labels, alpha=case.entry["kd_lambda"], alpha_weighs="labels",
        temperature=case.temperature, reduction="mean",
    )  # fmt: skip


def _small(student: Tensor, teacher: Tensor, case: Case) -> Tensor:
    found = re.search(r"multiplied by ([\d.]+)", case.entry["reference"])
    assert found is not None
    return distance_correlation(student * float(found[1]), teacher * float(found[1]))


def _sequence(student: Tensor, teacher: Tensor, case: Case) -> Tensor:
    entry = case.entry
    return distance_correlation_over_time(
        student, teacher, entry.get("student_expand"), entry.get("teacher_expand")
    )


# By the beginning of an entry's name: the longest that fits counts.
OURS: dict[str, Loss] = {
    "rkd_distance": lambda s, t, _: distance_wise(s, t),
    "rkd_angle": lambda s, t, _: angle_wise(s, t),
    "rkd_total": lambda s, t, _: distance_wise(s, t) + 2.0 * angle_wise(s, t),
    "distance_correlation": lambda s, t, _: distance_correlation(s, t),
    "distance_correlation_small_scale": _small,
    "east_cosine": lambda s, t, _: cosine_wise(s, t, "l1"),
    "cosine_wise_mse": lambda s, t, _: cosine_wise(s, t, "mse"),
    "cosine_wise_smooth_l1": lambda s, t, _: cosine_wise(s, t, "smooth_l1"),
    "fitnet": lambda s, t, case: feature_wise(s @ case.fill("transform.weight").flatten(1).T, t, "mse"),
    "feature_mse_projected": _projected,
    "ssondo_cosine": lambda s, t, _: feature_wise(s, t, "cosine"),
    "ssondo_l1": lambda s, t, _: feature_wise(s, t, "l1"),
    "ssondo_mse": lambda s, t, _: feature_wise(s, t, "mse"),
    "ssondo_contrastive": _contrastive("clap"),
    "ssondo_real_contrastive": _contrastive("decoupled"),
    "ssondo_neg_clusters": _contrastive("cluster_negatives"),
    "ssondo_cluster_aware": _contrastive("cluster_aware"),
    "ssondo_kl": lambda s, t, case: soft_targets(s, t, case.temperature, "mean"),
    "hinton": _hinton,
    "cpjku_kd": _cpjku,
    "efficientat_kd": _efficientat,
    "east_kd_soft": lambda s, t, case: teacher_tags(s, t, "binary_kl", case.temperature),
    "east_seq": _sequence,
}


def ours(name: str) -> Loss:
    """Return our loss for an entry of the spec."""
    fitting = [start for start in OURS if name.startswith(start)]
    assert fitting, f"the golden losses have an entry that nothing here matches: {name}"
    return OURS[max(fitting, key=len)]


def names() -> list[Any]:
    """Return the names of the spec's entries as pytest parameters; one skip where there is no spec."""
    if not (golden.GOLDEN_DIR / "losses" / "spec.json").is_file():
        reason = f"golden folder losses is not at {golden.GOLDEN_DIR} (set GOLDEN_DIR)"
        return [pytest.param("", marks=pytest.mark.skip(reason=reason))]
    return [entry["name"] for entry in golden.require("losses")[0]["losses"]]


def case_of(name: str) -> Case:
    """Return the entry called ``name`` with its inputs."""
    spec, taps = golden.require("losses")
    return Case(spec, taps, next(entry for entry in spec["losses"] if entry["name"] == name))


def broken(case: Case, damage: str) -> tuple[Tensor, Tensor]:
    """Return student and teacher as the spec's broken input ``damage`` has them; sets the rows in use."""
    student, teacher = case.student.clone(), case.teacher.clone()
    case.rows = slice(None)
    if damage.startswith("batch_"):
        case.rows = slice(int(damage.removeprefix("batch_")))
        return student[case.rows], teacher[case.rows]
    if damage.startswith("student_times_"):
        return student * float(damage.removeprefix("student_times_")), teacher
    side, what = damage.split("_", 1)
    for rows in {"student": [student], "teacher": [teacher], "both": [student, teacher]}[side]:
        if what == "rows_0_and_1_equal":
            rows[1] = rows[0]
        elif what == "all_rows_equal":
            rows[:] = rows[0].clone()
        elif what == "row_0_zero":
            rows[0] = 0.0
        elif what == "all_zero":
            rows[:] = 0.0
        else:
            raise KeyError(f"the golden losses know a case that this test does not: {damage}")
    return student, teacher


def value_and_gradient(loss: Loss, student: Tensor, teacher: Tensor, case: Case) -> tuple[float, Tensor]:
    """Return a loss and its gradient with respect to the student's input."""
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher, case)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient
