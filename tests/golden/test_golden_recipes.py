"""Shipped recipes of published systems against the constants that the specs read from the authors' code."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.training.optimiser import learning_rate
from tests.golden import golden_vectors as golden


def read(name: str) -> dict[str, Any]:
    """Return a JSON file of the golden folder, or skip with a message."""
    path = golden.GOLDEN_DIR / name
    if not path.is_file():
        pytest.skip(f"golden {name} is not at {golden.GOLDEN_DIR} (set GOLDEN_DIR)")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def runs(name: str) -> dict[str, Recipe]:
    return {run.name: run.recipe for run in recipes.expand(recipes.load(name))}


def test_ssondo_trains_as_published() -> None:
    sampling = read("sampling.json")
    train = recipes.load("ssondo").train
    draws = recipes.load("ssondo").sampling
    constants, epoch = sampling["training_constants"], sampling["epoch"]
    assert (
        constants["optimizer"]
        .lower()
        .startswith(f"{train.optimiser} {train.learning_rate:.0e}".replace("e-0", "e-"))
    )
    assert train.weight_decay == 0 and "no weight decay" in constants["optimizer"]
    assert train.clip_norm == constants["gradient_clip"]
    assert draws.clusters == sampling["K"]["chosen"]
    assert draws.epoch_rows == epoch["num_samples"]["readme_example"]
    assert (draws.draws == "independent") == epoch["replacement"]["configs"]
    assert train.batch_size == epoch["batch_size"]["readme_example"]
    assert train.steps * train.batch_size == draws.epoch_rows * epoch["epochs"]["readme_example"]
    # Published an epoch at a time: equal at the start of each but the first, where half an epoch counts.
    assert draws.epoch_rows is not None
    epoch_steps = draws.epoch_rows // train.batch_size
    values = constants["schedule_values"]
    for at, factor in zip(values["epochs"], values["factors"], strict=True):
        if at > 0:
            got = learning_rate(at * epoch_steps, train) / train.learning_rate
            assert got == pytest.approx(factor, abs=1e-5), f"epoch {at}"


@pytest.mark.parametrize("name", ["ssondo_mobilenetv3", "ssondo_dymn", "ssondo_eres2net"])
def test_ssondo_hears_and_maps_as_published(name: str) -> None:
    spec, _ = golden.require(name)
    recipe = recipes.load("ssondo")
    frontend, published = recipe.embed.frontend, spec["frontend"]
    offset = re.search(r"ln\(mel \+ ([0-9.e-]+)\)", published["log"])
    assert offset is not None
    assert {
        "sample_rate": frontend.sample_rate_hz, "n_fft": frontend.n_fft, "win_length": frontend.window_length,
        "hop": frontend.hop_length, "center": frontend.center, "power": frontend.power, "n_mels": frontend.mels,
        "fmin": frontend.min_hz, "fmax": frontend.max_hz, "mel_scale": frontend.mel_scale,
    }.items() <= published.items()  # fmt: skip
    assert (frontend.log, frontend.log_offset) == ("ln", float(offset[1]))
    head = spec["config"]["classification_head"]
    assert recipe.targets.head == head["head_type"]
    assert recipe.targets.head_hidden == head.get("hidden_features_size", recipe.targets.head_hidden)
    samples = round(recipe.embed.window_seconds * frontend.sample_rate_hz)
    assert frontend.frames(samples) == published["slicing"]["frames_a_segment"]
    if name == "ssondo_dymn":
        dymn = next(found for run, found in runs("ssondo").items() if run.startswith("dymn-"))
        assert dymn.student.options["temperature_schedule"] == "constant"


@pytest.mark.parametrize(("name", "folder"), [("east", "east_cp_resnet"), ("east_magna", "east_mobile_fcn")])
def test_east_weighs_the_distance_as_published(name: str, folder: str) -> None:
    spec, _ = golden.require(folder)
    share = spec["config"]["reg_loss_weight"]
    published = spec["frontend"]
    for run, recipe in runs(name).items():
        if run in ("scratch", "random"):
            continue
        loss = recipe.loss
        assert loss.labels == pytest.approx(1 - share), run
        distances = [weight for weight in (loss.distance_correlation, loss.cosine) if weight]
        assert distances == [pytest.approx(share)], run
        frontend = recipe.embed.frontend
        assert {
            "sample_rate": frontend.sample_rate_hz, "n_fft": frontend.n_fft, "hop": frontend.hop_length,
            "win_length": frontend.window_length, "n_mels": frontend.mels, "fmin": frontend.min_hz,
            "fmax": frontend.max_hz, "pad_mode": frontend.pad_mode,
        }.items() <= published.items()  # fmt: skip


def test_good_teacher_weighs_labels_and_teacher_as_published() -> None:
    spec, _ = golden.require("losses")
    published = next(loss for loss in spec["losses"] if loss["name"] == "cpjku_kd")
    for run, recipe in runs("good_teacher").items():
        loss = recipe.loss
        assert (loss.hinton_alpha_weighs, loss.hinton_reduction) == ("labels", "mean"), run
        assert loss.hinton_alpha == published["kd_lambda"], run
        assert loss.hinton_temperature == published["temperature"], run


@pytest.mark.parametrize("name", ["tess_wav2small", "tess_wav2tiny"])
def test_tess_varies_temperature_and_share_as_published(name: str) -> None:
    # No taps: the report's layers are not published.
    grid = read("wav2tiny/spec.json")["published"]["grid"]
    found = {(r.loss.hinton_temperature, r.loss.hinton_alpha) for run, r in runs(name).items() if "-" in run}
    assert {(float(t), float(a)) for t in grid["T"] for a in grid["alpha"]} <= found
    assert {r.loss.hinton_alpha_weighs for r in runs(name).values()} == {"labels"}
