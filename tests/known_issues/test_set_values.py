"""What a new user typed after ``--set`` and was answered wrongly, or not at all."""

from __future__ import annotations

import pytest
import torch

from pipeline import recipe as recipes
from pipeline.data.augment import time_mask
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("targets.head", "none"), ("targets.transform", "none"), ("train.control", "none"),
        ("sampling.balance", "none"), ("embed.frontend.mel_norm", "none"),
    ],
)  # fmt: skip
def test_none_is_a_choice_where_it_is_one(key: str, value: str) -> None:
    """It became null, and the answer was that the value should be 'none'."""
    found: object = recipes.load("demo", [f"{key}={value}"])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize("text", ["none", "null"])
def test_none_and_null_are_no_value_where_it_is_not(text: str) -> None:
    recipe = recipes.load("demo", [f"train.clip_norm={text}", f"student.embedding_dim={text}"])
    assert recipe.train.clip_norm is None
    assert recipe.student.embedding_dim is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("loss.angle=-1", "loss.angle: Input should be greater than or equal to 0"),
        ('loss.angle={kind="linaer",start=0,end=2,last_step=5}', "loss.angle"),
        ("augment.mask_fill=max", "augment.mask_fill: Input should be 'mean'; or: "),
        ("targets.teachers=aisfx", "targets.teachers: Input should be a list"),
        ("student.options=3", "student.options: Input should be a table"),
        ("train.start_from=/some/run", "train.start_from: Input should look like ^run:"),
    ],
)
def test_errors_name_keys_and_not_types_of_the_library(change: str, words: str) -> None:
    """``loss.angle.function-after[_possible(), WeightSchedule]`` is no key."""
    with pytest.raises(ConfigError) as caught:
        recipes.load("demo", [change])
    assert words in str(caught.value)
    for inner in ("function-after", "constrained-", "literal[", ".float", "instance of"):
        assert inner not in str(caught.value)


@pytest.mark.parametrize("term", ["distance", "angle", "distance_correlation", "kernel"])
def test_losses_that_say_nothing_of_two_rows_want_three(term: str) -> None:
    """A run of batches of two rows trained to the end on a loss of 0."""
    alone = ["loss.feature=0", f"loss.{term}=1"]
    with pytest.raises(ConfigError, match="fewer than 3 rows"):
        recipes.load("demo", [*alone, "train.batch_size=2"])
    assert recipes.load("demo", [*alone, "train.batch_size=3"]).train.batch_size == 3
    assert (
        recipes.load("demo", [*alone, "train.batch_size=2", "relations.queue_rows=64"]).relations.queue_rows
        == 64
    )
    assert recipes.load("demo", [*alone, "train.batch_size=2", "train.control=random"]).train.batch_size == 2


def test_the_unbiased_alignment_wants_four_rows() -> None:
    wanted = ["loss.feature=0", "loss.kernel=1", "loss.kernel_unbiased=true"]
    with pytest.raises(ConfigError, match="fewer than 4 rows"):
        recipes.load("demo", [*wanted, "train.batch_size=3"])
    assert recipes.load("demo", [*wanted, "train.batch_size=4"]).loss.kernel_unbiased


def test_a_mask_too_long_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"--set train\.time_mask_frames=20"):
        time_mask(torch.zeros(2, 8, 20), 21, 0.0, torch.Generator())


def test_a_run_without_seeds_is_refused() -> None:
    """It was trained zero times, and nothing was said."""
    with pytest.raises(ConfigError, match=r"seeds: .* at least 1 item"):
        recipes.load("demo", ["runs.distilled.seeds=[]"])
