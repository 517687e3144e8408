"""CP-ResNet, CP-Mobile and the DCASE 2024 baseline against their authors' code: names, shapes, every tap, counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.students.base import Student
from pipeline.students.cp_mobile import CpMobile
from pipeline.students.cp_resnet import CpResNet
from pipeline.teachers.cp import FAMILY
from tests.golden import golden_vectors
from tests.golden.golden_vectors import filled_state, folders, require, waveform

# Spec folder to the teacher's name; the folder's taps to modules, where they differ.
NAMES = {
    "cp_resnet": "cp_resnet",
    "cp_mobile_6k": "cp_mobile_6k",
    "cp_mobile_12k": "cp_mobile_12k",
    "cp_mobile_30k": "cp_mobile_30k",
    "cp_mobile_128k": "cp_mobile_128k",
    "dcase24_baseline": "dcase24_baseline",
    "east_cp_resnet": "cp_resnet_east",
}
FOLDERS = folders(*NAMES)
# The specs state no tolerance but how far the reference network itself is from float64: a few 1e-6 of a tap's
# rms, from stored features. From the waveform, a log-mel's quiet bins hold little but float32 rounding.
ROUNDING_FACTOR = 10
THROUGH_THE_FRONTEND = 1e-3


def build(folder: str, spec: dict[str, Any]) -> Student:
    """Return the network with as many classes as the spec's."""
    classes = spec["config"].get("n_classes") or spec["config"]["student"]["args"]["num_classes"]
    return FAMILY[NAMES[folder]].network(classes)


def module_of(tap: str, folder: str) -> str | None:
    """Return the module whose output a tap is, None where it is a function of another."""
    stem = {"stem": "in_c", "pool0": "stage1.maxpool0"}
    if tap in stem:
        return stem[tap]
    if tap == "class_maps":
        return "feed_forward"
    if tap.startswith("stage"):
        return tap
    if not tap.startswith("block"):
        return None
    if "resnet" in folder:
        return f"stage1.{tap}"
    number = int(tap.removeprefix("block").split("_")[0])
    stage = 1 if number <= 3 else 2 if number <= 5 else 3
    return f"stages.s{stage}.b{number}" + (".block" if tap.endswith("_before_grn") else "")


def computed(folder: str, model: nn.Module, features: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Return every tap of ``names`` for the given log-mel."""
    taps: dict[str, Tensor] = {}
    handles = []
    wanted = [*names, "stage1", "stage2", "stage3", "block6"]
    for name in dict.fromkeys(wanted):
        path = module_of(name, folder)
        if path is None or (name not in names and path not in dict(model.named_modules())):
            continue

        def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            taps[name] = output.clone()

        handles.append(model.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad():
        logits = model(features)
    for handle in handles:
        handle.remove()
    last = taps["stage3"] if "resnet" in folder else taps["block6"]
    taps |= {"features": features, "embedding": last.mean(dim=(2, 3)), "logits": logits, "scores": logits}
    taps["probabilities"] = logits.sigmoid()
    for stage in (1, 2, 3):
        if f"stage{stage}" in taps:
            taps[f"output_{stage}"] = taps[f"stage{stage}"].mean(dim=2).transpose(1, 2)
    return taps


def sliced(tap: Tensor, text: str | None) -> Tensor:
    if not text:
        return tap
    parts = [part.strip() for part in text.strip("[]").split(",")]
    return tap[tuple(slice(*(int(n) if n else None for n in part.split(":"))) for part in parts)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_state_dict_has_the_published_names_shapes_and_dtypes(folder: str) -> None:
    spec, _ = require(folder)
    ours = build(folder, spec).state_dict()
    assert {k: (list(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in ours.items()} == {
        e["name"]: (list(e["shape"]), e["dtype"]) for e in spec["state"]
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_tap_equals_the_reference(folder: str, record_property: Any) -> None:
    spec, taps = require(folder)
    model = build(folder, spec).eval()
    problems = model.load_state_dict(filled_state(spec, taps), strict=False)
    assert problems.unexpected_keys == []
    assert all(k.endswith("num_batches_tracked") for k in problems.missing_keys)
    given = spec["input"]["waveform"]
    waves = np.concatenate(
        [waveform(s, given["seconds"], given["sample_rate"], given["channels"]) for s in given["seeds"]]
    )
    family = FAMILY[NAMES[folder]]
    assert family.sample_rate_hz == given["sample_rate"]
    features = family.frontend()(torch.from_numpy(waves))[:, None]
    about_features = spec["taps"]["features"]
    squeezed = len(about_features["full_shape"]) == 3
    got = computed(folder, model, features, list(spec["taps"]))
    runs = [(got, lambda about: THROUGH_THE_FRONTEND)]
    if about_features["slice"] is None:
        stored = torch.from_numpy(taps["features"])
        alone = computed(folder, model, stored[:, None] if squeezed else stored, list(spec["taps"]))
        runs.append((alone, lambda about: ROUNDING_FACTOR * about.get("float64_deviation", 0.0)))
    worst_of_all = 0.0
    for made, tolerance in runs:
        for name, about in spec["taps"].items():
            tap = made[name][:, 0] if name == "features" and squeezed else made[name]
            assert list(tap.shape) == about["full_shape"], f"{folder} {name}"
            difference = np.abs(sliced(tap, about["slice"]).numpy().astype(np.float64) - taps[name])
            worst, allowed = float(difference.max()) / about["rms"], tolerance(about)
            if hasattr(golden_vectors, "report"):
                golden_vectors.report(folder, name, worst, allowed)
            worst_of_all = max(worst_of_all, worst)
            assert worst <= allowed, f"{folder} {name}: {worst:.3g} of the rms, allowed {allowed:.3g}"
    record_property("worst_deviation", worst_of_all)


@pytest.mark.parametrize("folder", FOLDERS)
def test_parameters_and_multiply_accumulates_are_the_measured_ones(folder: str) -> None:
    spec, _ = require(folder)
    published = spec["published"]
    shape = spec["taps"]["features"]["full_shape"]
    seconds_of_spec = published.get("macs_measured_1s")
    with torch.device("meta"):
        model = build(folder, spec).eval()
        assert isinstance(model, CpMobile | CpResNet)
        assert sum(p.numel() for p in model.parameters()) == published["params_measured"]
        assert model.pooled_dim == published["embedding_dim"]
        frames = shape[-1] if seconds_of_spec else int(published["macs_note"].split(",")[1].split()[0])
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(torch.empty(1, 1, shape[-2], frames))
    assert counter.get_total_flops() // 2 == (seconds_of_spec or published["macs_measured"])
