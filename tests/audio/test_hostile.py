"""No input makes the decoder crash, hang or allocate; each gives a reason or its sound."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio import decode
from pipeline.errors import AudioError
from tests.audio import hostile_files
from tests.audio.hostile_files import USED

MIN_SECONDS = 0.05


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[hostile_files.Hostile]:
    return hostile_files.write_all(tmp_path_factory.mktemp("hostile"))


def outcome(path: Path) -> str:
    try:
        found = decode.inspect(path, MIN_SECONDS)
    except AudioError as error:
        return error.reason
    return "silent" if found.peak < 1e-3 else USED


def test_there_are_two_hundred_of_them(hostile: list[hostile_files.Hostile]) -> None:
    assert len(hostile) >= 200
    assert len({item.path for item in hostile}) == len(hostile)


@pytest.mark.timeout(60)
def test_each_gives_the_right_reason_or_its_sound(hostile: list[hostile_files.Hostile]) -> None:
    wrong = {}
    for item in hostile:
        found = outcome(item.path)
        if found not in item.outcomes:
            wrong[decode.displayed(item.path.name)] = (found, sorted(item.outcomes))
        assert found == USED or found in decode.REASONS
    assert not wrong


def test_many_reasons_really_occur(hostile: list[hostile_files.Hostile]) -> None:
    found = {outcome(item.path) for item in hostile}
    assert found >= {
        USED, "empty", "not_audio", "truncated", "corrupt", "no_channels", "too_many_channels", "bad_rate",
        "header_lies", "no_samples", "non_finite", "out_of_range", "too_short", "directory", "not_a_file",
        "symlink_loop", "missing",
    }  # fmt: skip


def test_reading_agrees_with_inspecting(hostile: list[hostile_files.Hostile]) -> None:
    for item in hostile:
        if outcome(item.path) != USED:
            continue
        whole, rate = decode.read(item.path)
        seen = decode.inspect(item.path)
        assert (len(whole), rate) == (seen.info.frames, seen.info.sample_rate_hz)
        assert np.isfinite(whole).all() and whole.dtype == np.float32


def test_a_header_that_lies_costs_no_memory(hostile: list[hostile_files.Hostile]) -> None:
    liars = [item.path for item in hostile if item.path.name.startswith("three_hours")]
    assert len(liars) >= 8
    tracemalloc.start()
    for path in liars:
        outcome(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 << 20  # three hours would take 691 MB


def test_a_file_that_may_not_be_read_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"x")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(decode.os, "open", refuse)
    with pytest.raises(AudioError) as caught:
        decode.probe(path)
    assert caught.value.reason == "unreadable"


def test_a_name_with_a_null_byte_is_a_bad_name() -> None:
    with pytest.raises(AudioError) as caught:
        decode.probe("a\0b.wav")
    assert caught.value.reason == "bad_name"


def test_a_name_that_is_not_utf8_can_be_written_down(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.wav"))
    shown = decode.displayed(path)
    assert shown.endswith("caf\\xe9.wav")
    shown.encode("utf-8")
