"""MicroNet and MobileViT v1 and v2 against their authors' code: names, shapes, numerics, parameters, MACs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.students.base import Student
from pipeline.students.micronet import MicroNet
from pipeline.students.micronet_variants import M0, M1, M2, M3
from pipeline.students.mobilevit import XS, XXS, MobileVit
from pipeline.students.mobilevitv2 import MobileVitV2
from tests.golden.golden_vectors import assert_close, filled_state, folders, require, tensor

MICRONETS = {"micronet_m0": M0, "micronet_m1": M1, "micronet_m2": M2, "micronet_m3": M3}
MULTIPLIERS = {"mobilevitv2_050": 0.5, "mobilevitv2_075": 0.75, "mobilevitv2_100": 1.0}
SIZES = {"mobilevit_xxs": XXS, "mobilevit_xs": XS}
CLASSIFIERS = ("classifier.", "head.fc.")
NAMES = folders(*MICRONETS, *MULTIPLIERS, *SIZES)


def build(name: str, in_channels: int, num_classes: int) -> Student:
    if name in MICRONETS:
        return MicroNet(MICRONETS[name], in_channels=in_channels, num_classes=num_classes)
    if name in SIZES:
        return MobileVit(SIZES[name], odd_size="resize", in_channels=in_channels, num_classes=num_classes)
    return MobileVitV2(MULTIPLIERS[name], odd_size="resize", in_channels=in_channels, num_classes=num_classes)


def classes(spec: dict[str, Any]) -> int:
    """Return the published network's number of classes, from its last matrix."""
    return next(e["shape"][0] for e in reversed(spec["state"]) if len(e["shape"]) == 2)


def variants(spec: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return every input of the spec with the prefix of its taps."""
    return [(entry, entry["name"].removesuffix("x")) for entry in spec["inputs"]]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def stored(tap: Tensor, entry: dict[str, Any]) -> Tensor:
    """Return the part of a tap that the golden file keeps, e.g. ``[:, :, ::3, ::3]``."""
    if "stored" not in entry:
        return tap
    parts = [part.strip() for part in entry["stored"].strip("[]").split(",")]
    assert all(re.fullmatch(r"-?\d*:-?\d*(:-?\d+)?", part) for part in parts), entry["stored"]
    slices = (slice(*(int(n) if n else None for n in part.split(":"))) for part in parts)
    return tap[tuple(slices)]


def tapped(model: Student, names: list[str], x: Tensor) -> dict[str, Tensor]:
    """Run ``model`` on ``x`` and return its output and the outputs of the named modules."""
    taps: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            # Cloned, for the next layer may work in place.
            taps[name] = output.clone()

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(keep(name)) for name in names if name != "output"
    ]
    with torch.no_grad():
        taps["output"] = model(x)
    for handle in handles:
        handle.remove()
    return taps


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_published_names_shapes_and_dtypes(name: str) -> None:
    spec, _ = require(name)
    ours = build(name, spec["inputs"][0]["shape"][1], classes(spec)).state_dict()
    assert [(k, list(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in ours.items()] == [
        (e["name"], list(e["shape"]), e["dtype"]) for e in spec["state"]
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_tap_equals_the_reference(name: str) -> None:
    spec, taps = require(name)
    for entry, prefix in variants(spec):
        others = [p for _, p in variants(spec) if p and p != prefix]
        wanted = [
            t
            for t in spec["taps"]
            if t["name"].startswith(prefix) and not any(t["name"].startswith(o) for o in others)
        ]
        output = next(t for t in wanted if t["name"] == f"{prefix}output")
        with_classes = classes(spec) if output["shape"][-1] == classes(spec) else 0
        model = build(name, entry["shape"][1], with_classes).eval()
        state = filled_state(spec, taps, entry.get("state_changes"), prefix)
        if not with_classes:
            state = {k: v for k, v in state.items() if not k.startswith(CLASSIFIERS)}
        problems = model.load_state_dict(state, strict=False)
        assert problems.unexpected_keys == []
        assert all(k.endswith("num_batches_tracked") for k in problems.missing_keys)
        got = tapped(
            model, [t["name"].removeprefix(prefix) for t in wanted], tensor(entry["seed"], entry["shape"])
        )
        for t in wanted:
            where = f"{name} {t['name']}"
            tap = got[t["name"].removeprefix(prefix)]
            assert list(tap.shape) == t["shape"], where
            assert_close(stored(tap, t), taps[t["name"]], spec["tolerance"], where)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    spec, _ = require(name)
    counts = spec["counts"]
    with torch.device("meta"):
        whole = build(name, 3, classes(spec))
        colour, mono = build(name, 3, 0), build(name, 1, 0)
    assert parameters(whole) == counts["parameters_total"]
    if name in MICRONETS:
        assert parameters(colour) == counts["parameters_features_only_3ch"]
        assert parameters(mono) == counts["parameters_features_only_1ch"]
        assert mono.embedding_dim == counts["feature_channels"]
    else:
        assert parameters(colour) == counts["parameters_backbone_3ch"]
        assert parameters(mono) == counts["parameters_backbone_1ch"]
        assert mono.embedding_dim == counts["embedding_dim"]


@pytest.mark.parametrize("name", NAMES)
def test_multiply_accumulates_are_the_published_ones(name: str) -> None:
    spec, _ = require(name)
    with torch.device("meta"):
        whole, mono = build(name, 3, classes(spec)).eval(), build(name, 1, 0).eval()
        compared = 0
        for key, want in spec["counts"].items():
            square = re.fullmatch(r"macs_(\d+)_(conv_and_linear_total|with_attention_products)", key)
            size = re.fullmatch(r"macs_mono_1x(\d+)x(\d+)(_features_only|_with_attention_products)?", key)
            products = key.endswith("_with_attention_products")
            if square:
                assert macs(whole, (1, 3, int(square[1]), int(square[1])), products) == want, key
            elif size:
                assert macs(mono, (1, 1, int(size[1]), int(size[2])), products) == want, key
            compared += bool(square or size)
    assert compared >= 2


def macs(model: nn.Module, shape: tuple[int, ...], attention_products: bool) -> int:
    """Return the multiply-accumulates of convolutions and linear layers, and of softmax attention if asked."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.empty(shape))
    counts = {str(operator): flops for operator, flops in counter.get_flop_counts()["Global"].items()}
    left_out = () if attention_products else ("aten.bmm",)
    return sum(flops for operator, flops in counts.items() if operator not in left_out) // 2
