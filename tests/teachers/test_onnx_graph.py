"""Any ONNX graph is a teacher by its declaration alone; hostile files are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.config import LogMelConfig, TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.frontends.log_mel import LogMel
from pipeline.teachers.base import Teacher
from pipeline.teachers.registry import build_teacher
from tests.teachers.tiny_graphs import (
    patch_graph,
    quantised_graph,
    save,
    waveform_graph,
    waveform_values,
)

SAMPLES = 40
MEL = {"sample_rate_hz": 8_000, "n_fft": 64, "window_length": 64, "hop_length": 32, "mels": 8, "max_hz": 4_000.0,
       "log": "log10", "log_offset": 1e-4, "min_hz": 0.0}  # fmt: skip


def config_of(path: Path, **options: Any) -> TeacherConfig:
    given = {
        "sample_rate_hz": 8_000,
        "embedding": "hidden",
        "licence": "CC0-1.0",
        "citation": "none",
        **options,
    }
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return TeacherConfig(name="onnx", weights=path, trust_sha256=digest, options=given, batch_size=4)


def sound(batch: int, samples: int) -> torch.Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_inner_tensors_of_a_waveform_graph(batch: int | str, tmp_path: Path) -> None:
    path = waveform_graph(tmp_path / "my graph.onnx", SAMPLES, batch)
    teacher = build_teacher(config_of(path, logits="logits", hop_samples=SAMPLES // 2))
    assert isinstance(teacher, Teacher)
    assert (teacher.name, teacher.window_samples, teacher.embedding_dim) == ("my_graph", SAMPLES, 6)
    assert teacher.outputs == ("embedding", "logits", "frames")
    waveforms = sound(5, 3 * SAMPLES + 3)
    got = teacher.embed(waveforms, teacher.outputs)
    starts = range(0, 2 * SAMPLES + 3 + 1, SAMPLES // 2)
    windows = [waveforms[:, s : s + SAMPLES].numpy() for s in starts]
    hidden, logits = (np.stack(part, axis=1) for part in zip(*map(waveform_values, windows), strict=True))
    np.testing.assert_allclose(got["frames"], hidden, atol=1e-5)
    np.testing.assert_allclose(got["embedding"], hidden.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(got["logits"], logits.mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_activations_are_undone(kind: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["sound", "V"], ["hidden"]),
        helper.make_node(kind.title(), ["hidden"], ["scores"]),
    ]
    values = np.random.default_rng(0).standard_normal((SAMPLES, 5)).astype(np.float32)
    path = save(tmp_path / "a.onnx", nodes, ["b", SAMPLES], "scores", {"V": values})
    teacher = build_teacher(config_of(path, logits="scores", logits_are=kind))
    waveforms = 0.2 * sound(2, SAMPLES)
    got = teacher.embed(waveforms, ["logits", "embedding"])
    apart = (got["logits"] - got["embedding"]).numpy()
    apart = apart - apart.mean(axis=1, keepdims=True) if kind == "softmax" else apart
    np.testing.assert_allclose(apart, 0, atol=2e-3)


def test_short_sound_is_followed_by_silence(tmp_path: Path) -> None:
    teacher = build_teacher(config_of(waveform_graph(tmp_path / "a.onnx", SAMPLES)))
    short = sound(2, 7)
    padded = np.pad(short.numpy(), ((0, 0), (0, SAMPLES - 7)))
    np.testing.assert_allclose(teacher.embed(short)["embedding"], waveform_values(padded)[0], atol=1e-5)
    assert teacher.embed(short[:0])["embedding"].shape == (0, 6)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [(["b", 16, 8], "time_mel"), (["b", 1, 16, 8], "time_mel"), ([3, 1, 8, 16], "mel_time")],
)
def test_log_mel_patches(shape: list[int | str], layout: str, tmp_path: Path) -> None:
    path = patch_graph(tmp_path / "a.onnx", shape)
    options = {"input": "log_mel", "log_mel": MEL, "patch_frames": 16, "hop_frames": 8, "layout": layout,
               "embedding": "flat", "mel_scale": 2.0, "mel_shift": 4.0}  # fmt: skip
    teacher = build_teacher(config_of(path, **options))
    assert teacher.window_samples == 15 * 32 + 1
    waveforms = sound(2, 35 * 32)
    level = 2.0 * LogMel(LogMelConfig.model_validate(MEL))(waveforms).numpy() + 4.0
    patches = [level[:, :, start : start + 16] for start in (0, 8, 16)]
    assert level.shape[2] == 36
    pooled = [p.reshape(2, 2, 4, 2, 8).mean(axis=(2, 4)) for p in patches]
    if layout == "time_mel":
        pooled = [p.transpose(0, 2, 1) for p in pooled]
    want = np.stack([p.reshape(2, 4) for p in pooled], axis=1)
    np.testing.assert_allclose(teacher.embed(waveforms, ["frames"])["frames"], want, atol=1e-4)


def test_the_discogs_scaling_is_expressible() -> None:
    """log10(10000 x + 1), Essentia's, is log10(x + 1e-4) + 4."""
    power = np.geomspace(1e-9, 1e3, 50)
    np.testing.assert_allclose(np.log10(10_000 * power + 1), np.log10(power + 1e-4) + 4, atol=1e-12)


def test_integer_tensors_are_dequantised_by_the_graphs_own_scale(tmp_path: Path) -> None:
    path = quantised_graph(tmp_path / "a.onnx", SAMPLES)
    waveforms = sound(2, SAMPLES).clamp(-1, 1)
    want = (np.clip(np.rint(waveforms.numpy() * 64) + 100, 0, 255) - 100) / 64
    teacher = build_teacher(config_of(path, embedding="codes"))
    np.testing.assert_allclose(teacher.embed(waveforms)["embedding"], want, atol=1e-6)
    other = build_teacher(config_of(path, embedding="codes", quantisation={"codes": (0.5, 0)}))
    np.testing.assert_allclose(other.embed(waveforms)["embedding"], (want * 64 + 100) / 2, atol=1e-4)


def test_pooling_over_axes(tmp_path: Path) -> None:
    nodes = [helper.make_node("Unsqueeze", ["sound", "axes"], ["image"])]
    path = save(tmp_path / "a.onnx", nodes, ["b", 4, 6], "image", {"axes": np.array([3], np.int64)})
    options = {"input": "log_mel", "log_mel": {**MEL, "mels": 6}, "patch_frames": 4, "embedding": "image"}
    with pytest.raises(ConfigError, match="is no vector a window"):
        build_teacher(config_of(path, **options))
    teacher = build_teacher(config_of(path, **options, pool="channels_first"))
    assert teacher.embedding_dim == 4


def test_the_digest_covers_file_and_options_and_not_the_name(tmp_path: Path) -> None:
    path = waveform_graph(tmp_path / "a.onnx", SAMPLES)
    first = build_teacher(config_of(path))
    assert build_teacher(config_of(path, name="other")).digest() == first.digest()
    assert build_teacher(config_of(path, hop_samples=3)).digest() != first.digest()
    assert build_teacher(config_of(path, embedding="mixed")).digest() != first.digest()
    larger = waveform_graph(tmp_path / "b.onnx", SAMPLES + 1)
    assert build_teacher(config_of(larger)).digest() != first.digest()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embedding": "hiden"}, "did you mean hidden"),
        ({"window_samples": 50}, "is not the graph's"),
        ({"input": "log_mel"}, "needs the table log_mel"),
        ({"input": "log_mel", "log_mel": MEL, "patch_frames": 4}, "takes another input"),
        ({"embeding": "hidden"}, "no option 'embeding'"),
        ({"input_name": "wave"}, "takes other inputs"),
        ({"embedding": 3}, "has a name"),
        ({"licence": ""}, "licence"),
        ({"checkpoint": "yamnet"}, "is for teacher 'tflite'"),
    ],
)
def test_a_wrong_declaration_is_explained(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = waveform_graph(tmp_path / "a.onnx", SAMPLES)
    with pytest.raises(ConfigError) as caught:
        build_teacher(config_of(path, **options))
    assert words in str(caught.value)


def test_an_untrusted_file_and_bfloat16_are_refused(tmp_path: Path) -> None:
    path = waveform_graph(tmp_path / "a.onnx", SAMPLES)
    config = config_of(path)
    with pytest.raises(WeightsError, match="not trusted by itself") as caught:
        build_teacher(config.model_copy(update={"trust_sha256": None}))
    assert f"--set embed.teacher.trust_sha256={config.trust_sha256}" in str(caught.value)
    with pytest.raises(ConfigError, match="as exported"):
        build_teacher(config.model_copy(update={"dtype": "bfloat16"}))
    with pytest.raises(ConfigError, match="needs a graph file"):
        build_teacher(TeacherConfig(name="onnx", options=config.options))


def external(path: Path, location: str, length: int = 24, offset: int = 0) -> Path:
    """Write a graph whose one constant lies in another file."""
    tensor = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=[3, 2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    nodes = [helper.make_node("MatMul", ["sound", "W"], ["hidden"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("sound", TensorProto.FLOAT, ["b", 3])],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, None)], [tensor],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beside_the_file_is_part_of_the_digest(tmp_path: Path) -> None:
    path = external(tmp_path / "a.onnx", "a.bin")
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    (tmp_path / "a.bin").write_bytes(values.tobytes())
    first = build_teacher(config_of(path))
    heard = sound(2, 3)
    np.testing.assert_allclose(first.embed(heard)["embedding"], heard.numpy() @ values, atol=1e-5)
    (tmp_path / "a.bin").write_bytes((values + 1).tobytes())
    assert build_teacher(config_of(path)).digest() != first.digest()


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "", "link.bin"])
def test_external_data_elsewhere_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(24))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(WeightsError, match="outside its folder"):
        build_teacher(config_of(external(folder / "a.onnx", location)))


@pytest.mark.parametrize(("length", "offset"), [(10**12, 0), (24, 8), (-24, 0)])
def test_external_data_past_its_end_is_refused(length: int, offset: int, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(24))
    with pytest.raises(WeightsError, match="past the end"):
        build_teacher(config_of(external(tmp_path / "a.onnx", "a.bin", length, offset)))


def test_custom_operators_and_broken_files_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Shell", ["sound"], ["hidden"], domain="evil.example")]
    with pytest.raises(WeightsError, match="operators of others") as caught:
        build_teacher(config_of(save(tmp_path / "a.onnx", nodes, ["b", SAMPLES], "hidden", {})))
    assert caught.value.got == "evil.example.Shell"
    body = helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info("hidden", 1, None)])
    hidden = helper.make_node("If", ["flag"], ["hidden"], then_branch=body, else_branch=body)
    with pytest.raises(WeightsError, match="operators of others"):
        build_teacher(
            config_of(save(tmp_path / "a.onnx", [hidden], ["b", 4], "hidden", {"flag": np.array(True)}))
        )
    good = waveform_graph(tmp_path / "good.onnx", SAMPLES).read_bytes()
    for content in (b"", b"<html>no</html>", good[: len(good) // 2]):
        path = tmp_path / "broken.onnx"
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            build_teacher(config_of(path))


def test_a_graph_that_the_runtime_refuses_is_one_line(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["sound", "W"], ["hidden"])]
    path = save(tmp_path / "a.onnx", nodes, ["b", SAMPLES], "hidden", {"W": np.zeros((3, 2), np.float32)})
    with pytest.raises((WeightsError, ConfigError)) as caught:
        build_teacher(config_of(path))
    assert "\n\n" not in str(caught.value)
