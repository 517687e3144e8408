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
