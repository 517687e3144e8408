"""EfficientAT's mn and dymn networks against the authors' code: frontend, blocks, embedding, logits, counts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.frontends.preemphasis_mel import PreemphasisMel, PreemphasisMelConfig
from pipeline.students.dymn import DyMN
from pipeline.students.mobilenetv3 import MobileNetV3
from pipeline.teachers import precision
from pipeline.teachers.efficientat import EfficientAtTeacher
from tests.golden import convolutional_teachers as convnets
from tests.golden import golden_vectors as golden
from tests.golden.convolutional_teachers import Golden

FOLDERS = (
    "efficientat_mn04_as",
    "efficientat_mn10_as",
    "efficientat_dymn04_as",
    "efficientat_dymn10_as",
)


@pytest.fixture(scope="module", params=golden.folders(*FOLDERS))
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def vectors(folder: str) -> Golden:
    return golden.require(folder)


def network(spec: dict[str, Any], classes: int | None = None) -> MobileNetV3 | DyMN:
    config = spec["config"]
    width = config["width_mult"]
    classes = config["num_classes"] if classes is None else classes
    if "dyconv_k" in config:
        return DyMN(width=width, num_classes=classes, temperature=config["dyconv_temperature"])
    return MobileNetV3(width=width, num_classes=classes)


@pytest.fixture(scope="module")
def state(vectors: Golden) -> dict[str, Tensor]:
    """The published entries; Dy-ReLU's two constants as the spec's quirks give them."""
    constants = {
        entry["name"]: torch.tensor(
            [1.0, 1.0, 0.5, 0.5] if "lambdas" in entry["name"] else [1.0, 0.0, 0.0, 0.0]
        )
        for entry in vectors[0]["state"]
        if entry["name"].endswith(("lambdas", "init_v"))
    }
    return convnets.published_state(vectors, constants)


@pytest.fixture(scope="module")
def teacher(
    folder: str, vectors: Golden, state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> EfficientAtTeacher:
    file = tmp_path_factory.mktemp("efficientat") / vectors[0]["checkpoint"]["files"][0]
    loaded = convnets.load_from_disk(folder, state, file)
    assert isinstance(loaded, EfficientAtTeacher)
    return loaded


def module_of(tap: str, dynamic: bool) -> str:
    """Return the module whose output a tap is."""
    number = re.match(r"block(\d+)", tap)
    if not dynamic:
        ends = {"stem": "features.0", "last_conv": "features.16"}
        return f"features.{number[1]}" if number else ends[tap]
    if not number:
        return {"stem": "in_c", "last_conv": "out_c"}[tap]
    parts = {
        "context": ".context_gen",
        "dyconv": ".depth_conv",
        "dyrelu": ".depth_act",
        "coordatt": ".ca",
    }
    part = tap.partition("_")[2]
    return f"layers.{int(number[1]) - 1}{parts[part] if part else ''}"


def test_state_dict_has_the_published_names_shapes_and_order(vectors: Golden) -> None:
    with torch.device("meta"):
        ours = convnets.names_and_shapes(network(vectors[0]).state_dict())
    assert list(ours.items()) == list(convnets.of_spec(vectors[0]).items())


def test_counts_are_the_measured_ones(vectors: Golden) -> None:
    published = vectors[0]["published"]
    with torch.device("meta"):
        whole = network(vectors[0]).eval()
        backbone = network(vectors[0], classes=0)
    assert sum(p.numel() for p in whole.parameters()) == published["params_measured"]
    without = published.get("params_measured_without_classifier")
    assert without is None or sum(p.numel() for p in backbone.parameters()) == without
    assert backbone.embedding_dim == published["embedding_dim"]
    macs = convnets.multiply_accumulates(whole, whole, 1, 1, 128, 1000)
    assert macs == published["macs_measured_10s"]


def test_every_tap_equals_the_reference(
    folder: str, vectors: Golden, state: dict[str, Tensor], record_property: Any
) -> None:
    spec, taps = vectors
    net = network(spec)
    net.load_state_dict(state)
    net.eval()
    features = PreemphasisMel(PreemphasisMelConfig())(convnets.waveforms(spec))[:, None]
    worst = convnets.check(folder, vectors, {"features": features}, convnets.through_the_frontend)
    own = ("features", "embedding", "logits")
    modules = {tap: module_of(tap, isinstance(net, DyMN)) for tap in spec["taps"] if tap not in own}
    for given, allowed in (
        (features, convnets.through_the_frontend),
        (torch.from_numpy(taps["features"]), convnets.rounding),
    ):
        with convnets.recorded(net, modules) as found:
            found["logits"] = net(given)
            found["embedding"] = found["last_conv"].mean(dim=(2, 3))
        assert sorted(found) == sorted(tap for tap in spec["taps"] if tap != "features")
        worst = max(worst, convnets.check(folder, vectors, found, allowed))
    record_property("worst_deviation", worst)


def test_the_student_gives_the_published_embedding(
    folder: str, vectors: Golden, state: dict[str, Tensor]
) -> None:
    spec, taps = vectors
    student = network(spec, classes=0)
    student.load_state_dict({k: v for k, v in state.items() if not k.startswith("classifier.")})
    student.eval()
    with torch.inference_mode():
        embedding = student(torch.from_numpy(taps["features"]))
    convnets.check(folder, vectors, {"embedding": embedding}, convnets.rounding)


def test_the_teacher_from_the_published_file_equals_the_reference(
    folder: str, vectors: Golden, teacher: EfficientAtTeacher
) -> None:
    spec, _ = vectors
    made = teacher.embed(convnets.waveforms(spec), teacher.outputs)
    values = {tap: made[tap] for tap in ("embedding", "logits")}
    convnets.check(folder, vectors, values, convnets.through_the_frontend)
    last = spec["taps"]["last_conv"]["full_shape"]
    assert list(made["frames"].shape) == [last[0], last[3], last[1]]
    block15 = spec["taps"]["block15"]["full_shape"]
    assert list(made["layer.14"].shape) == block15[:2]


def test_folding_changes_no_more_than_rounding(
    folder: str, vectors: Golden, teacher: EfficientAtTeacher
) -> None:
    _, taps = vectors
    x = torch.from_numpy(taps["features"])
    with torch.inference_mode():
        for step in teacher.steps:
            x = step(x)
        embedding = x.mean(dim=(2, 3))
        values = {"last_conv": x, "embedding": embedding, "logits": teacher.classifier(embedding)}
    convnets.check(folder, vectors, values, convnets.rounding)


def test_bfloat16_where_it_keeps_the_direction(
    folder: str,
    vectors: Golden,
    state: dict[str, Tensor],
    teacher: EfficientAtTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "bfloat16_is_faster", lambda device: True)
    half = convnets.load_from_disk(folder, state, tmp_path / "network.pt", dtype="auto")
    assert isinstance(half, EfficientAtTeacher)
    assert half.dtype is (torch.float32 if "dyconv_k" in vectors[0]["config"] else torch.bfloat16)
    waveforms = convnets.waveforms(vectors[0])
    got, want = (one.embed(waveforms)["embedding"] for one in (half, teacher))
    assert torch.cosine_similarity(got, want).min() > 0.999
