"""Checkpoints are verified, loaded without code execution and converted once."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import TeacherConfig
from pipeline.errors import UnknownNameError, WeightsError
from pipeline.teachers import converted, fetching, weights
from pipeline.teachers.aisfx import unwrap
from tests.teachers.checkpoint_table import enter, saved, wheel_in_cache

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(7)}
ANY = TeacherConfig()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def assert_state(state: dict[str, torch.Tensor]) -> None:
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_loads_the_tuple_with_numpy_integers_and_converts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = wheel_in_cache(saved((STATE, {"head": (np.int64(3), 78)})), tmp_path, monkeypatch)
    first = weights.load("made", ANY, unwrap, tmp_path)
    wheel.unlink()
    second = weights.load("made", ANY, unwrap, tmp_path)
    for loaded in (first, second):
        assert_state(loaded.state)
        assert loaded.extra == {"heads": {"head": (3, 78)}}
        assert loaded.sha256 == weights.CHECKPOINTS["made"].sha256
        assert loaded.licence == "CC0-1.0"
    assert [p.suffix for p in sorted(wheel.parent.iterdir())] == [".json", ".safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".legacy.pth", ".zip"])
def test_every_kind_of_file(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"made{suffix}"
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(STATE, path)
    elif suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("folder/readme.txt", "x")
            archive.writestr("folder/checkpoint-300.pth", saved(STATE))
    else:
        path.write_bytes(saved(STATE, legacy=".legacy" in suffix))
    enter(monkeypatch)
    config = TeacherConfig(weights=path, trust_sha256=sha256(path.read_bytes()))
    for _ in range(2):
        assert_state(weights.load("made", config, cache=tmp_path / "cache").state)


def test_the_tree_of_a_training_checkpoint_survives_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import argparse

    tied = torch.ones(3)
    payload = {
        "cfg": {"layers": 12, "rate": 0.5, "dropout": None, "sizes": [1, (2, "x")], 4: True},
        "args": argparse.Namespace(model="m", flag=False),
        "model": {"a": tied, "b": tied, "half": torch.ones(2, dtype=torch.bfloat16)},
        "epoch": np.float64(2.5), "indexes": np.arange(4), "optimizer": {"exp_avg": torch.zeros(1000)},
    }  # fmt: skip
    path = tmp_path / "made.pt"
    path.write_bytes(saved(payload))
    enter(monkeypatch, sha256=sha256(path.read_bytes()), allow=("numpy_scalars", "numpy_arrays", "namespace"))
    seen: list[object] = []

    def keep(given: object) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        seen.append(given)
        return {}, {}

    for _ in range(2):
        weights.load("made", TeacherConfig(weights=path), keep, tmp_path)
    for given in seen:
        assert isinstance(given, dict)
        assert given["cfg"] == payload["cfg"]
        assert given["args"] == {"model": "m", "flag": False}
        assert torch.equal(given["model"]["b"], tied)
        assert given["model"]["half"].dtype == torch.bfloat16
        assert given["epoch"] == 2.5
        assert given["indexes"].tolist() == [0, 1, 2, 3]
        assert "optimizer" not in given


def test_classes_that_stand_in_are_read_as_plain_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config:
        def __init__(self) -> None:
            self.depth = 3

    Config.__module__, Config.__qualname__ = "somebodys_training", "Config"
    import sys
    import types

    module = types.ModuleType("somebodys_training")
    module.Config = Config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_training", module)
    path = tmp_path / "made.ckpt"
    path.write_bytes(saved({"config": Config(), "state_dict": STATE}))
    monkeypatch.delitem(sys.modules, "somebodys_training")
    trusted = TeacherConfig(weights=path, trust_sha256=sha256(path.read_bytes()))
    enter(monkeypatch)
    with pytest.raises(WeightsError, match="names code") as caught:
        weights.load("made", trusted, cache=tmp_path)
    assert "somebodys_training.Config" in str(caught.value)
    enter(monkeypatch, stand_ins=("somebodys_training.Config",))

    def parts(payload: dict[str, object]) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        return payload["state_dict"], payload["config"]  # type: ignore[return-value]

    loaded = weights.load("made", trusted, parts, tmp_path)
    assert loaded.extra["depth"] == 3
    assert_state(loaded.state)


def test_a_damaged_conversion_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel_in_cache(saved((STATE, {})), tmp_path, monkeypatch)
    weights.load("made", ANY, unwrap, tmp_path)
    (path,) = (tmp_path / "teachers" / "made").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert_state(weights.load("made", ANY, unwrap, tmp_path).state)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["sha256"] == sha256(path.read_bytes())


def test_a_damaged_conversion_whose_source_is_gone_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = wheel_in_cache(saved((STATE, {})), tmp_path, monkeypatch)
    weights.load("made", ANY, unwrap, tmp_path)
    wheel.unlink()
    (path,) = wheel.parent.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError) as caught:
        weights.load("made", ANY, unwrap, tmp_path)
    assert "ossicle fetch teacher made" in str(caught.value)


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel_in_cache(saved((STATE, {})), tmp_path, monkeypatch)
    other = tmp_path / "other.pth"
    other.write_bytes(saved(STATE))
    digest = sha256(other.read_bytes())
    with pytest.raises(WeightsError, match="not the known file") as caught:
        weights.load("made", TeacherConfig(weights=other), cache=tmp_path)
    assert f"--set embed.teacher.trust_sha256={digest}" in str(caught.value)
    assert f"--trust-sha256 {digest}" in str(caught.value)
    wrong = TeacherConfig(weights=other, trust_sha256="0" * 64)
    with pytest.raises(WeightsError, match="not the known file"):
        weights.load("made", wrong, cache=tmp_path)
    right = TeacherConfig(weights=other, trust_sha256=digest)
    assert weights.load("made", right, cache=tmp_path).sha256 == digest


def test_a_sibling_of_the_same_teacher_is_known_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.pt"
    path.write_bytes(saved(STATE))
    enter(monkeypatch, "made_small", teacher="made", licence="A")
    enter(monkeypatch, "made_large", teacher="made", licence="B", sha256=sha256(path.read_bytes()))
    assert weights.load("made", TeacherConfig(weights=path), cache=tmp_path).licence == "B"


def test_a_changed_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = wheel_in_cache(saved((STATE, {})), tmp_path, monkeypatch)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("made/checkpoint.pth", saved(({}, {})))
    with pytest.raises(WeightsError, match="not the known file"):
        weights.load("made", ANY, unwrap, tmp_path)
    assert [p.name for p in wheel.parent.iterdir()] == [wheel.name]


def test_archives_of_no_one_checkpoint_or_damaged_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, max_bytes=100_000)
    path = tmp_path / "made.zip"

    def refused(words: str) -> None:
        config = TeacherConfig(weights=path, trust_sha256=sha256(path.read_bytes()))
        with pytest.raises(WeightsError, match=words):
            weights.load("made", config, cache=tmp_path / "cache")

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.pth", saved(STATE))
        archive.writestr("b.pth", saved(STATE))
    refused("does not hold one checkpoint")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.pth", bytes(10_000_000))
    refused("a.pth is too large")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.pth", saved(STATE))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused("cannot be read")
    content = bytearray(saved(STATE))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.pth", bytes(content))
    # Compression method 99 (encrypted) in both headers of the member.
    whole = path.read_bytes()
    central = whole.rindex(b"PK\x01\x02")
    path.write_bytes(whole[:8] + b"\x63\x00" + whole[10 : central + 10] + b"\x63\x00" + whole[central + 12 :])
    refused("cannot be read")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_run(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "was_run"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(target),))

    enter(monkeypatch)
    for content in (saved(({"a": Evil()}, {}), legacy=legacy), pickle.dumps(Evil(), protocol=2)):
        path = tmp_path / "evil.pt"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be loaded: it names code") as caught:
            weights.load(
                "made", TeacherConfig(weights=path, trust_sha256=sha256(content)), cache=tmp_path / "cache"
            )
        assert caught.value.got == "posix.mkdir"
    assert not target.exists()
    assert not (tmp_path / "cache").exists()


def test_an_absent_checkpoint_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError) as caught:
        weights.load("aisfx", ANY, cache=tmp_path)
    assert "ossicle fetch teacher aisfx" in str(caught.value)
    with pytest.raises(UnknownNameError, match="no checkpoint is known"):
        weights.load("asfix", ANY, cache=tmp_path)
    enter(monkeypatch, "elsewhere", file="Elsewhere_v1.pt", licence="CC BY-NC 4.0")
    with pytest.raises(WeightsError) as caught:
        weights.load("elsewhere", ANY, cache=tmp_path)
    said = str(caught.value)
    for part in ("Elsewhere_v1.pt", "https://example.org/elsewhere", "CC BY-NC 4.0", str(tmp_path),
                 "ossicle fetch teacher elsewhere --from"):  # fmt: skip
        assert part in said


def test_a_file_put_into_the_cache_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "teachers" / "made" / "made.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(saved(STATE))
    enter(monkeypatch)
    with pytest.raises(WeightsError, match="no digest is known"):
        weights.load("made", ANY, cache=tmp_path)
    enter(monkeypatch, sha256=sha256(path.read_bytes()))
    assert_state(weights.load("made", ANY, cache=tmp_path).state)
    assert converted.converted_path(path.parent, sha256(path.read_bytes())).is_file()


def test_a_layout_that_is_no_flat_state_dict_is_outlined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "made.pt"
    path.write_bytes(saved({"model": STATE, "epoch": 3}))
    enter(monkeypatch, sha256=sha256(path.read_bytes()))
    with pytest.raises(WeightsError, match="no flat state dict") as caught:
        weights.load("made", TeacherConfig(weights=path), cache=tmp_path)
    assert caught.value.got == "a dict of model, epoch"


def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = weights.CHECKPOINTS["aisfx"].model_copy(update={"requirement": "aisfx==0.0.0"})
    monkeypatch.setitem(weights.CHECKPOINTS, "aisfx", entry)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(WeightsError, match="could not download"):
        fetching.fetch("aisfx", tmp_path)
    assert list((tmp_path / "teachers" / "aisfx").iterdir()) == []


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.default_cache() == tmp_path / "ossicle"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights.default_cache() == tmp_path / "home" / ".cache" / "ossicle"
