"""S-SONDO's MobileNetV3 and DyMN against the authors' code, and MobileNetV3's counts against timm's."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.artifact import file_digest
from pipeline.config import StudentConfig
from pipeline.students import build_student
from pipeline.students.base import Student, make_divisible
from pipeline.students.initial import load_initial
from pipeline.students.mobilenetv3 import ROWS, ROWS_SMALL, STEM_CHANNELS, MobileNetV3, Row
from tests.golden import convolutional_teachers as convnets
from tests.golden import golden_vectors as golden
from tests.golden.convolutional_teachers import Golden
from tests.golden.test_golden_student_networks import frontend, head_of

SSONDO = {"ssondo_mobilenetv3": "mn10", "ssondo_dymn": "dymn10"}
COUNTS = "mobilenetv3"


@pytest.fixture(scope="module", params=golden.folders(*SSONDO))
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def vectors(folder: str) -> Golden:
    return golden.require(folder)


def student_config(folder: str, spec: dict[str, Any], **keys: Any) -> StudentConfig:
    """Return the student that the spec describes; DyMN at the temperature that its training left it at."""
    published = spec["config"]["student_model"]
    options = {}
    if "pretrain_final_temp" in published:
        options = {"temperature": published["pretrain_final_temp"], "temperature_schedule": "constant"}
    width = float(published["width_mult"])
    return StudentConfig(name=SSONDO[folder], width=width, options=options, **keys)


def published_file(vectors: Golden, path: Path) -> Path:
    """Write the authors' checkpoint: prefix, head and training configuration as the spec describes them."""
    prefix = re.search(r"prefix '([\w.]+)'", vectors[0]["checkpoint"]["layout"])
    assert prefix is not None
    constants = {
        entry["name"]: torch.tensor(
            [1.0, 1.0, 0.5, 0.5] if "lambdas" in entry["name"] else [1.0, 0.0, 0.0, 0.0]
        )
        for entry in vectors[0]["state"]
        if entry["name"].endswith(("lambdas", "init_v"))
    }
    state = convnets.published_state(vectors, constants)
    torch.save(
        {
            "state_dict": {prefix[1] + name: value for name, value in state.items()},
            "training_config": {"student_model": vectors[0]["config"]["student_model"], "where": path},
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def loaded(folder: str, vectors: Golden, tmp_path_factory: pytest.TempPathFactory) -> Student:
    path = published_file(vectors, tmp_path_factory.mktemp("ssondo") / vectors[0]["checkpoint"]["files"][0])
    config = student_config(folder, vectors[0], weights=path, trust_sha256=file_digest(path))
    student = build_student(config, vectors[0]["frontend"]["n_mels"])
    started = load_initial(student, config, vectors[0]["frontend"]["n_mels"])
    assert started is not None
    assert any(note.startswith("classification_head") for note in started.notes), started.notes
    assert "S-SONDO" in started.citation
    path.unlink()
    return student.eval()


def module_of(tap: str, student: Student) -> str:
    """Return the module whose output a tap is."""
    number = re.match(r"block(\d+)(_se)?", tap)
    if isinstance(student, MobileNetV3):
        if not number:
            return {"stem": "features.0", "last_conv": "features.16"}[tap]
        return f"features.{number[1]}"
    if not number:
        return {"stem": "in_c", "last_conv": "out_c"}[tap]
    return f"layers.{int(number[1]) - 1}"


def test_state_dict_has_the_published_names_and_shapes(vectors: Golden, loaded: Student) -> None:
    ours = convnets.names_and_shapes(loaded.state_dict())
    ours.pop("temperature", None)
    published = convnets.of_spec(vectors[0])
    backbone = {name.removeprefix("model."): v for name, v in published.items() if name.startswith("model.")}
    assert list(ours.items()) == list(backbone.items())


def test_every_tap_equals_the_reference_from_waveform_and_from_features(
    folder: str, vectors: Golden, loaded: Student
) -> None:
    spec, _ = vectors
    features = frontend(spec["frontend"])(convnets.waveforms(spec))[:, None]
    head = head_of(vectors)
    values = {"features": features}
    convnets.check(folder, vectors, values, convnets.through_the_frontend)
    given = spec["input"]["features"]
    # The authors feed (batch, segments, mel, frame), every segment apart.
    direct = golden.tensor(given["seed"], given["shape"])
    for prefix, x, allowed in (
        ("", features, convnets.through_the_frontend),
        ("direct_", direct, convnets.rounding),
    ):
        names = [tap for tap in spec["taps"] if tap.startswith("direct_") == bool(prefix)]
        inner = [name for name in names if re.fullmatch(rf"{prefix}(stem|block\d+(_se)?|last_conv)", name)]
        modules = {name: module_of(name.removeprefix(prefix), loaded) for name in inner}
        with convnets.recorded(loaded, modules) as found:
            embedding = loaded(x.flatten(0, 1)[:, None])
        found[f"{prefix}segment_embeddings"] = embedding.unflatten(0, x.shape[:2])
        found[f"{prefix}embedding"] = found[f"{prefix}segment_embeddings"].mean(dim=1)
        with torch.inference_mode():
            found[f"{prefix}prediction"] = head(found[f"{prefix}segment_embeddings"])
        convnets.check(folder, vectors, found, allowed)
        assert set(names) - set(found) <= {"features"}, set(names) - set(found)


def test_counts_are_the_published_ones(folder: str, vectors: Golden) -> None:
    spec = vectors[0]
    with torch.device("meta"):
        student = build_student(student_config(folder, spec), 128).eval()
    assert sum(p.numel() for p in student.parameters()) == spec["published"]["params_measured_backbone"]
    assert student.embedding_dim == spec["published"]["embedding_dim"]
    shape = (1, 1, spec["frontend"]["n_mels"], spec["frontend"]["slicing"]["frames_a_segment"])
    macs = convnets.multiply_accumulates(student, student, *shape)
    assert macs == spec["published"]["macs_measured_10s_backbone"]


def timm_rows(rows: tuple[Row, ...], width: float) -> tuple[Row, ...]:
    """Return blocks scaled as timm does: hidden counts from the rounded inputs' times the published ratio.

    torchvision, and EfficientAT after it, scale the published hidden counts themselves; both agree at width 1.
    """
    scaled, published, inputs = [], STEM_CHANNELS, STEM_CHANNELS
    for row in rows:
        hidden = make_divisible(inputs * row.hidden / published)
        published, inputs = row.channels, make_divisible(row.channels * width)
        scaled.append(replace(row, hidden=hidden, channels=inputs))
    return tuple(scaled)


@pytest.mark.parametrize("name", golden.folders(COUNTS))
def test_counts_of_mobilenetv3_are_timms_without_its_last_convolution(name: str) -> None:
    spec = json.loads((golden.GOLDEN_DIR / name / "spec.json").read_text(encoding="utf-8"))
    for variant, counts in spec["variants"].items():
        size, percent = re.fullmatch(r"mobilenetv3_(small|large)_(\d+)", variant).groups()  # type: ignore[union-attr]
        rows = timm_rows(ROWS_SMALL if size == "small" else ROWS, int(percent) / 100)
        with torch.device("meta"):
            student: nn.Module = MobileNetV3(rows=rows).eval()
        parameters = sum(p.numel() for p in student.parameters())
        assert parameters == counts["parameters_without_conv_head_1ch"], variant
        features, after = counts["feature_map_for_128x1000"][1], counts["embedding_dim"]
        assert features == student.embedding_dim
        macs = convnets.multiply_accumulates(student, student, 1, 1, 128, 1000)
        assert macs + features * after == counts["macs_mono_1x128x1000_no_classifier"], variant


def test_annealed_temperature_is_the_published_schedule() -> None:
    """Beside a literal transcription of Schmid et al.'s rule, epoch by epoch of their 200."""
    student = build_student(StudentConfig(name="dymn04", width=0.1), 32)
    epochs, first = 200, 30.0
    steps = 10 * epochs + 1
    for epoch in range(epochs):
        student.at_step(10 * epoch, steps)  # type: ignore[operator]
        fast, slow = first - 1.0 * epoch, 1.0 + 0.05 * (first - 1.0) - 0.05 * epoch
        want = max(fast, slow, 1.0)
        held: Tensor = student.state_dict()["temperature"]
        assert float(held) == pytest.approx(want, abs=1e-5), epoch
