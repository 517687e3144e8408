"""The benchmark harness itself: what it writes, and that nothing that fails goes unseen."""

from __future__ import annotations

import json
import types
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.benchmarks import run
from tests.benchmarks.rows import CannotRunError, Row, fastest_seconds, peak_growth_bytes


def module(name: str, *names: str, rows: object) -> types.ModuleType:
    made = types.ModuleType(name)
    made.NAMES, made.rows = names, rows  # type: ignore[attr-defined]
    return made


def good(names: Collection[str]) -> Iterator[Row]:
    yield from (Row.at_least(name, 2.0, 1.0) for name in names)


def halfway(names: Collection[str]) -> Iterator[Row]:
    yield Row.at_most("first", 1.0, 2.0, "s")
    raise CannotRunError("no such device")


def broken(names: Collection[str]) -> Iterator[Row]:
    raise ZeroDivisionError("oh")
    yield


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def call(
        *modules: types.ModuleType, only: tuple[str, ...] = ()
    ) -> tuple[int, dict[str, dict[str, object]]]:
        monkeypatch.setattr(run, "modules", lambda: list(modules))
        output = tmp_path / "build" / "bench.json"
        asked = [part for name in only for part in ("--only", name)]
        status = run.main([*asked, "--output", str(output)])
        written = json.loads(output.read_text()) if output.is_file() else []
        return status, {row["name"]: row for row in written}

    return call


def test_rows_are_written_with_name_value_unit_goal_met(bench) -> None:
    status, written = bench(module("m", "a", "b", rows=good))
    assert status == 0
    assert set(written) == {"a", "b"}
    assert written["a"] | {"detail": ""} == {
        "name": "a", "value": 2.0, "unit": "x", "goal": ">= 1", "met": True, "detail": ""
    }  # fmt: skip


def test_only_runs_one_and_an_unknown_name_is_refused(bench, capsys: pytest.CaptureFixture[str]) -> None:
    status, written = bench(module("m", "a", "b", rows=good), module("n", "c", rows=broken), only=("b",))
    assert (status, set(written)) == (0, {"b"})
    assert bench(module("m", "angle_speed", rows=good), only=("angle_sped",))[0] == 2
    assert "did you mean angle_speed?" in capsys.readouterr().err


def test_a_missed_goal_is_exit_1(bench) -> None:
    missed = module("m", "a", rows=lambda names: [Row.at_most("a", 3.0, 2.0, "s")])
    status, written = bench(missed)
    assert (status, written["a"]["met"]) == (1, False)
    assert bench(module("m", "a", rows=lambda names: [Row.at_least("a", float("nan"), 2.0)]))[0] == 1


def test_what_cannot_run_says_why_and_is_not_a_missed_goal(bench) -> None:
    status, written = bench(module("m", "first", "second", rows=halfway))
    assert status == 0
    assert (written["first"]["met"], written["second"]["met"]) == (True, None)
    assert "no such device" in str(written["second"]["detail"])


def test_a_broken_benchmark_is_seen_and_hides_no_other(bench) -> None:
    status, written = bench(module("m", "a", rows=broken), module("n", "b", rows=good))
    assert status == 1
    assert (written["a"]["met"], written["b"]["met"]) == (False, True)
    assert "ZeroDivisionError" in str(written["a"]["detail"])


def test_every_benchmark_module_names_rows_no_other_has() -> None:
    names = [name for found in run.modules() for name in found.NAMES]
    assert len(names) == len(set(names)) > 0
    assert all(callable(found.rows) for found in run.modules())


def test_fastest_seconds_interleaves_the_variants() -> None:
    calls: list[str] = []
    seconds = fastest_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert all(0 <= value < 1 for value in seconds.values())


def allocate(megabytes: str):
    return lambda: bytearray(b"\1") * (int(megabytes) * 10**6)


def test_peak_growth_counts_what_the_function_takes_and_frees() -> None:
    grown = peak_growth_bytes("tests.benchmarks.test_harness:allocate", "200")
    assert 180e6 < grown < 300e6
    with pytest.raises(CannotRunError, match="no_such"):
        peak_growth_bytes("tests.benchmarks.test_harness:no_such")
