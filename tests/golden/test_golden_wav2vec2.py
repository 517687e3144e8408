"""wav2vec 2.0 base against transformers' own run: names and shapes, every tap, the published file layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from pipeline.artifact import file_digest
from pipeline.config import TeacherConfig
from pipeline.teachers.registry import build_teacher
from pipeline.teachers.wav2vec2 import Wav2Vec2Teacher, build_network, configuration
from tests.golden import golden_vectors
from tests.golden.golden_vectors import filled_state, folders, require, waveform

FOLDERS = folders("wav2vec2_base")
OLD_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
MODULES = {"conv0": "feature_extractor.conv_layers.0", "conv_features": "feature_projection.layer_norm"}


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the layout of the pre-training file: prefix, old weight norm, parts that no embedding needs."""
    made = {}
    for key, value in state.items():
        for new, old in OLD_NAMES.items():
            key = key.replace(new, old)
        made[f"wav2vec2.{key}"] = value
    made["quantizer.codevectors"] = torch.zeros(1, 4, 2)
    made["project_q.weight"] = made["project_hid.weight"] = torch.zeros(2, 2)
    return made


@pytest.fixture(scope="module", params=FOLDERS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param is None:
        pytest.skip("golden folder wav2vec2_base is absent")
    spec, taps = require(request.param)
    folder = tmp_path_factory.mktemp("wav2vec2")
    path = folder / "pytorch_model.bin"
    torch.save(published(filled_state(spec, taps)), path)
    config = TeacherConfig(
        name="wav2vec2", weights=path, trust_sha256=file_digest(path), dtype="float32", batch_size=2
    )
    teacher = build_teacher(config, cache=folder / "cache")
    path.unlink()
    return spec, taps, teacher


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_and_shapes_are_transformers_own(folder: str) -> None:
    spec, _ = require(folder)
    given = {e["name"]: torch.empty(e["shape"], device="meta") for e in spec["state"]}
    config = configuration(given)
    ours = build_network(config).state_dict()
    assert {k: list(v.shape) for k, v in ours.items()} == {e["name"]: e["shape"] for e in spec["state"]}
    for key, value in config.items():
        if key in spec["config"] and key != "apply_spec_augment":
            assert value == spec["config"][key], key


def test_every_tap_of_every_case_equals_the_reference(loaded: Any, record_property: Any) -> None:
    spec, taps, teacher = loaded
    assert isinstance(teacher, Wav2Vec2Teacher)
    about_waveform = spec["input"]["waveform"]
    worst_share = 0.0
    for case, given in about_waveform["cases"].items():
        rows = [waveform(s, given["seconds"], about_waveform["sample_rate"])[0] for s in given["seeds"]]
        got = computed(teacher, torch.from_numpy(np.stack(rows)))
        for name, about in spec["taps"].items():
            if not name.startswith(f"{case}."):
                continue
            tap = got[name.removeprefix(f"{case}.")]
            assert list(tap.shape) == about["full_shape"], name
            difference = np.abs(sliced(tap, about.get("slice")).numpy().astype(np.float64) - taps[name])
            worst, allowed = float(difference.max()), about["suggested_atol"]
            if hasattr(golden_vectors, "report"):
                golden_vectors.report("wav2vec2_base", name, worst, allowed)
            worst_share = max(worst_share, worst / allowed)
            assert worst <= allowed, f"{name}: {worst:.3g}, allowed {allowed:.3g}"
    record_property("worst_deviation", worst_share)


def computed(teacher: Wav2Vec2Teacher, waves: Tensor) -> dict[str, Tensor]:
    """Return every tap: hooks for the inside, the teacher's own outputs for the rest."""
    made: dict[str, Tensor] = {}
    hooks = [
        teacher.net.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, name=name: made.__setitem__(name, output.clone())
        )
        for name, path in MODULES.items()
    ]
    with torch.no_grad():
        made["input_values"] = teacher.frontend(waves)
        states = teacher.net(made["input_values"], output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    layers = [f"layer.{i}" for i in range(teacher.layers)]
    outputs = teacher.embed(waves, ("embedding", "frames", *layers))
    made |= {f"hidden{i}": state for i, state in enumerate(states)}
    made["block0_in"] = states[0]
    made[f"hidden{teacher.layers}"] = outputs["frames"]
    made["embedding"] = outputs["embedding"]
    made["layer_means"] = torch.stack([states[0].mean(dim=1), *(outputs[name] for name in layers)], dim=1)
    return made


def sliced(tap: Tensor, text: str | None) -> Tensor:
    if not text:
        return tap
    parts = [part.strip() for part in text.strip("[]").split(",")]
    return tap[tuple(slice(*(int(n) if n else None for n in part.split(":"))) for part in parts)]
