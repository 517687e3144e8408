"""Checkpoints are verified, loaded without code execution and converted once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import UnknownNameError, WeightsError
from pipeline.teachers import weights


def made(content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a wheel around ``content`` into the cache, and put it into the table as teacher 'made'."""
    path = folder / "teachers" / "made" / "made-1-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("made/checkpoint.pth", content)
    known = replace(
        weights.CHECKPOINTS["aisfx"], name="made", wheel=path.name, member="made/checkpoint.pth",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        sha256=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip
    monkeypatch.setitem(weights.CHECKPOINTS, "made", known)
    return path


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(7)}


def test_loads_the_tuple_with_numpy_integers_and_converts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = made(saved((STATE, {"head": (np.int64(0), 78)})), tmp_path, monkeypatch)
    first = weights.load("made", cache=tmp_path)
    wheel.unlink()
    second = weights.load("made", cache=tmp_path)
    for state in (first, second):
        assert state.keys() == STATE.keys()
        assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_a_damaged_conversion_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(saved((STATE, {})), tmp_path, monkeypatch)
    weights.load("made", cache=tmp_path)
    (converted,) = (tmp_path / "teachers" / "made").glob("*.safetensors")
    content = bytearray(converted.read_bytes())
    content[-1] ^= 1
    converted.write_bytes(bytes(content))
    assert torch.equal(weights.load("made", cache=tmp_path)["a.weight"], STATE["a.weight"])
    record = json.loads(converted.with_suffix(".json").read_text())
    assert record["sha256"] == hashlib.sha256(converted.read_bytes()).hexdigest()


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(saved((STATE, {})), tmp_path, monkeypatch)
    other = tmp_path / "other.pth"
    other.write_bytes(saved(({}, {})))
    with pytest.raises(WeightsError, match="not the known file") as caught:
        weights.load("made", other, tmp_path)
    assert hashlib.sha256(other.read_bytes()).hexdigest() in str(caught.value)


def test_a_changed_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = made(saved((STATE, {})), tmp_path, monkeypatch)
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="not the known file"):
        weights.load("made", cache=tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "was_run"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(target),))

    made(saved(({"a": Evil()}, {})), tmp_path, monkeypatch)
    with pytest.raises(WeightsError, match="cannot be loaded"):
        weights.load("made", cache=tmp_path)
    made_plain = pickle.dumps(Evil())
    with pytest.raises(WeightsError, match="cannot be loaded"):
        weights._state_dict(made_plain, weights.CHECKPOINTS["made"])
    assert not target.exists()


def test_an_absent_checkpoint_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        weights.load("aisfx", cache=tmp_path)
    assert "ossicle fetch" in str(caught.value)
    with pytest.raises(UnknownNameError, match="no checkpoint is known"):
        weights.load("asfix", cache=tmp_path)


def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(weights.CHECKPOINTS["aisfx"], requirement="aisfx==0.0.0")
    monkeypatch.setitem(weights.CHECKPOINTS, "aisfx", known)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(WeightsError, match="could not download"):
        weights.fetch_aisfx(tmp_path)
    assert list((tmp_path / "teachers" / "aisfx").iterdir()) == []


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.default_cache() == tmp_path / "ossicle"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights.default_cache() == tmp_path / "home" / ".cache" / "ossicle"
