"""A run's folder is named after what its weights depend on, and nothing else."""

from __future__ import annotations

import pytest

from pipeline import recipe as recipes
from stages import locations


@pytest.mark.parametrize(("control", "matters"), [("none", False), ("random", False), ("labels", True)])
def test_the_label_column_counts_only_where_labels_are_learnt(control: str, matters: bool) -> None:
    """It was part of every run's digest, so that changing it trained runs anew that never read it."""
    made = []
    for column in ("dataset", "label"):
        changes = [f'train.control="{control}"', f"train.label_column={column}"]
        run = recipes.expand(recipes.load("demo", [*changes]))[0]
        made.append(locations.run_config(run))
    assert (made[0] != made[1]) == matters


@pytest.mark.parametrize(
    ("change", "used"),
    [
        ("relations.anchors=7", "loss.anchor=1"),
        ("relations.neighbours=7", "loss.neighbour=1"),
        ("relations.queue_rows=7", None),
        ("targets.seed=3", None),
        ("relations.neighbour_temperature=1", "loss.neighbour=1"),
    ],
)
def test_relations_count_only_where_they_are_used(change: str, used: str | None) -> None:
    def config(*changes: str) -> object:
        return locations.run_config(recipes.expand(recipes.load("demo", changes))[0])

    on = [used] if used else []
    assert config(*on, change) != config(*on)
    if used:
        assert config(change) == config()


def test_keys_of_targets_that_came_later_leave_older_runs_where_they_are() -> None:
    """A run of before soft whitening, heads and compression has the digest it had."""
    config = locations.run_config(recipes.expand(recipes.load("demo"))[0])
    assert "relations" not in config
    assert set(config["targets"]) == {
        "teachers", "fusion", "teacher_weights", "transform", "components", "std_floor",
    }  # fmt: skip
