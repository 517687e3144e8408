"""Starting from a checkpoint: published layouts, what is left out, what is refused and how it is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.artifact import file_digest
from pipeline.config import LogMelConfig, StudentConfig
from pipeline.errors import WeightsError
from pipeline.students import build_student
from pipeline.students.base import Student
from pipeline.students.checkpoint_file import content_digest
from pipeline.students.initial import StartedFrom, load_initial
from pipeline.students.micronet import MicroNet
from pipeline.students.micronet_variants import M0
from pipeline.students.mobilenetv3 import MobileNetV3
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.published import fitting, student_checkpoints
from pipeline.students.saved import load_student, read_description, save_student

WIDTH = 0.1


class TrainingObject:
    """Stands for what authors' pickles hold beside tensors."""

    def __init__(self) -> None:
        self.root = Path("somewhere")


def published(classes: int = 5, width: float = WIDTH) -> MobileNetV3:
    torch.manual_seed(7)
    network = MobileNetV3(width=width, num_classes=classes)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value += 0.01 * torch.rand(value.shape)
    return network


def start(payload: Any, path: Path, **keys: Any) -> tuple[Student, StartedFrom]:
    """Write ``payload``, start mn10 at width 0.1 from it, trusted."""
    if path.suffix == ".safetensors":
        save_file(payload, path)
    else:
        torch.save(payload, path)
    given = {"name": "mn10", "width": WIDTH, "weights": path, "trust_sha256": file_digest(path), **keys}
    config = StudentConfig(**given)
    torch.manual_seed(0)
    student = build_student(config, 40)
    started = load_initial(student, config, 40)
    assert started is not None
    return student, started


def layouts(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "plain.pt": state,
        "plain.safetensors": state,
        "lightning.ckpt": {
            "state_dict": {f"student_model.model.{k}": v for k, v in state.items()},
            "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}}],
            "hyper_parameters": TrainingObject(),
            "path": Path("somewhere"),
        },
        "parallel.pth": {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        "compiled.bin": {"net": {f"_orig_mod.{k}": v.half() for k, v in state.items()}},
    }


@pytest.mark.parametrize("file", list(layouts({})))
def test_every_layout_gives_the_published_embedding(file: str, tmp_path: Path) -> None:
    network = published()
    student, started = start(layouts(network.state_dict())[file], tmp_path / file)
    x = torch.randn(2, 1, 40, 60)
    network.classifier = None
    with torch.no_grad():
        want, got = network.eval()(x), student.eval()(x)
    tolerance = 2e-2 if file == "compiled.bin" else 0.0
    assert float((got - want).abs().max()) <= tolerance * float(want.abs().max())
    assert any("classifier is no part" in note and "(4 entries)" in note for note in started.notes)
    assert started.sha256 == content_digest(tmp_path / file)


def test_an_embedding_layer_that_the_file_lacks_starts_at_random(tmp_path: Path) -> None:
    student, started = start(published().state_dict(), tmp_path / "a.pt", embedding_dim=12)
    assert any("embedding layer" in note and "random" in note for note in started.notes)
    torch.manual_seed(0)
    fresh = build_student(StudentConfig(name="mn10", width=WIDTH, embedding_dim=12), 40)
    assert torch.equal(student.embedding.weight, fresh.embedding.weight)


def test_three_input_channels_are_summed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    colour = MicroNet(M0, in_channels=3, num_classes=10).eval()
    student, started = start(colour.state_dict(), tmp_path / "m0.pth", name="micronet_m0", width=1.0)
    assert any("summed to 1" in note for note in started.notes)
    grey = torch.randn(2, 1, 40, 50)
    features: list[Tensor] = []
    for network, x in ((colour, grey.expand(-1, 3, -1, -1)), (student.eval(), grey)):
        handle = network.features[-1].register_forward_hook(lambda m, i, out: features.append(out))
        with torch.no_grad():
            network(x)
        handle.remove()
    torch.testing.assert_close(features[0], features[1], rtol=1e-4, atol=1e-5)


def refused(payload: Any, path: Path, **keys: Any) -> str:
    with pytest.raises(WeightsError) as error:
        start(payload, path, **keys)
    return str(error.value)


def test_another_width_is_refused_with_the_one_that_fits(tmp_path: Path) -> None:
    words = refused(published(width=0.2).state_dict(), tmp_path / "a.pt")
    assert "is [" in words and "wanted [" in words
    assert "--set student.name=mn10 --set student.width=0.2" in words


def test_another_network_is_refused_with_the_one_that_fits(tmp_path: Path) -> None:
    other = build_student(StudentConfig(name="cp_mobile_12k"), 64).state_dict()
    assert "student.name=cp_mobile_12k" in refused(other, tmp_path / "a.pt")
    assert "none of its names" in refused({"weight": torch.zeros(3)}, tmp_path / "b.pt")


def test_a_missing_a_foreign_and_a_spoilt_entry_are_refused(tmp_path: Path) -> None:
    state = dict(published().state_dict())
    spoilt = {**state, "features.3.block.0.0.weight": state["features.3.block.0.0.weight"] * float("nan")}
    assert "not finite" in refused(spoilt, tmp_path / "a.pt")
    assert "features.99.weight is not in the network" in refused(
        {**state, "features.99.weight": torch.zeros(2)}, tmp_path / "b.pt"
    )
    del state["features.0.0.weight"]
    assert "features.0.0.weight is missing" in refused(state, tmp_path / "c.pt")


def test_an_untrusted_digest_is_refused_with_what_to_set(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    words = refused(published().state_dict(), path, trust_sha256="0" * 64)
    assert f"--set student.trust_sha256={file_digest(path)}" in words


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.system, ("touch owned",))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = refused({"state_dict": published().state_dict(), "extra": Malicious()}, tmp_path / "a.pt")
    assert "it names code" in words
    assert not (tmp_path / "owned").exists()


def test_an_absent_file_says_what_is_wanted(tmp_path: Path) -> None:
    config = StudentConfig(name="mn10", weights=tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="not there"):
        load_initial(build_student(config, 40), config, 40)


def test_a_run_s_folder_needs_no_trust_and_gives_the_whole_network(tmp_path: Path) -> None:
    config = StudentConfig(name="dymn04", width=0.1, embedding_dim=9)
    torch.manual_seed(2)
    trained = NormalisedStudent(build_student(config, 40), mean=-5.0, std=3.0)
    trained.backbone.at_step(9, 10)  # type: ignore[operator]
    save_student(tmp_path / "run", trained, config, LogMelConfig(mels=40))
    again = config.model_copy(update={"weights": tmp_path / "run"})
    torch.manual_seed(3)
    student = build_student(again, 40)
    started = load_initial(student, again, 40)
    assert started is not None and started.notes == ()
    assert all(torch.equal(v, trained.backbone.state_dict()[k]) for k, v in student.state_dict().items())
    # What it started from goes with the weights; where that lay does not.
    saved = save_student(tmp_path / "next", trained, again, LogMelConfig(mels=40), started_from=started)
    assert saved.started_from == started
    assert read_description(tmp_path / "next").student.weights is None
    assert load_student(tmp_path / "next").backbone.embedding_dim == 9


def test_a_temperature_other_than_its_training_s_is_noted(tmp_path: Path) -> None:
    entry = next(
        e for e in student_checkpoints().values() if e.student == "dymn10" and e.options["temperature"] == 1
    )
    network = build_student(StudentConfig(name="dymn10", width=WIDTH), 40)
    state = {k: v for k, v in network.state_dict().items() if k != "temperature"}
    _, started = start(state, tmp_path / entry.published_name, name="dymn10")
    assert any("student.options.temperature = 1.0" in note for note in started.notes)
    assert started.licence == entry.licence and started.citation == entry.citation
    _, quiet = start(state, tmp_path / entry.published_name, name="dymn10", options={"temperature": 1.0})
    assert not any("temperature" in note for note in quiet.notes)


@pytest.mark.parametrize("name", list(student_checkpoints()))
def test_every_table_names_a_student_that_builds_at_its_width(name: str) -> None:
    entry = student_checkpoints()[name]
    config = StudentConfig(name=entry.student, width=entry.width, options=entry.options)
    with torch.device("meta"):
        network: nn.Module = build_student(config, 257 if entry.student == "harmonic_cnn" else 64)
    assert any(True for _ in network.parameters())
    assert re.search(r"(19|20)\d\d", entry.citation)
    assert entry in fitting(entry.student)


def test_an_exported_file_credits_what_it_started_from(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from pipeline.config import ExportConfig
    from pipeline.deploy.bundle import Job, metadata_of

    _, started = start(published().state_dict(), tmp_path / "mn01_as_mAP_298.pt")
    config = StudentConfig(name="mn10", width=WIDTH)
    trained = NormalisedStudent(build_student(config, 40), mean=-5.0, std=3.0)
    saved = save_student(tmp_path / "run", trained, config, LogMelConfig(mels=40), started_from=started)
    job = Job("a-seed0", tmp_path, tmp_path, tmp_path, ExportConfig(), {}, {"run": "0" * 64})
    properties = metadata_of(saved, job).properties()
    assert properties["ossicle.started_from_licence"] == "MIT"
    assert "mn01_as_mAP_298.pt" in properties["ossicle.started_from"]
    assert "ICASSP 2023" in properties["ossicle.started_from_credit"]
