"""The benchmark stage on a recipe whose exports are small graphs made on the spot."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import recipe as recipes
from pipeline.config import Recipe, StudentConfig
from pipeline.errors import MeasurementError, MissingArtifactError, MissingDependencyError
from pipeline.measure import arm, arm_layers, arm_root, extra_tables
from pipeline.students.registry import build_student
from stages import benchmark, benchmark_layers, benchmark_table, locations
from tests.measure import graphs
from tests.stages import benchmark_recipe


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    return benchmark_recipe.make(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def without_arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recipe, dict[str, Any], str]]:
    """A recipe benchmarked once without ARM, its record and what was printed, for tests that only read."""
    with pytest.MonkeyPatch.context() as patch:
        made = _without_arm(benchmark_recipe.make(tmp_path_factory.mktemp("benchmark"), patch))
        yield made, *_run(made)


def _run(recipe: Recipe, **options: Any) -> tuple[dict[str, Any], str]:
    stream = io.StringIO()
    folder = benchmark.run(recipe, console=Console(file=stream, width=200), **options)
    return json.loads((folder / "benchmark.json").read_text(encoding="utf-8")), stream.getvalue()


def _only(recipe: Recipe, name: str) -> Recipe:
    return recipes.change(recipe, {"runs": {name: recipe.runs[name].model_dump()}, "headline": name})


def _without_arm(recipe: Recipe) -> Recipe:
    return recipes.change(recipe, {"benchmark.arm": False})


def test_every_precision_has_a_row_beside_teacher_and_frontend(
    without_arm: tuple[Recipe, dict[str, Any], str],
) -> None:
    recipe, record, printed = without_arm
    students = [(r["model"], r["precision"], r["headline"]) for r in record["rows"] if r["kind"] == "student"]
    assert students == [(m, p, m == "big") for m in ("big", "small") for p in ("fp32", "s8s8", "u8s8")]
    assert [r["kind"] for r in record["rows"] if r["kind"] != "student"] == ["frontend", "teacher"]
    for row in record["rows"]:
        assert 0 < row["x86"]["p10_ms"] <= row["x86"]["p50_ms"] <= row["x86"]["p95_ms"]
        assert row["flops"] == 2 * row["macs"]
        assert "arm" in row["not_measured"]
    rows = {(r["model"], r["precision"]): r for r in record["rows"]}
    assert rows["big", "s8s8"]["int8_mac_share"] == 1.0
    assert rows["big", "fp32"]["executed_macs"] == graphs.MACS
    samples = round(recipe.embed.window_seconds * 16_000)
    assert rows["log-mel frontend", "fp32"]["macs"] == 10 * 512 * ((samples - 512) // 320 + 1)
    parameters = sum(p.numel() for p in build_student(StudentConfig(width=0.5), 64).parameters())
    assert rows["big", "fp32"]["parameters"] == parameters
    assert "benchmark.arm is false" in printed
    assert "energy not measured" in printed


def test_memory_is_a_table_of_its_own(without_arm: tuple[Recipe, dict[str, Any], str]) -> None:
    _, record, printed = without_arm
    rows = {(r["model"], r["precision"]): r for r in record["rows"]}
    fp32, int8 = rows["big", "fp32"], rows["big", "s8s8"]
    assert fp32["weight_bytes"] == 4 * graphs.CHANNELS * 9 * (1 + graphs.CHANNELS)
    assert fp32["weight_bytes"] + fp32["graph_bytes"] == 1024 * fp32["file_kb"]
    assert int8["arena_bytes"] < fp32["arena_bytes"] >= fp32["peak_activation_bytes"]
    # A session takes more than its activations, and less than a gigabyte.
    assert fp32["arena_bytes"] / 4 < fp32["x86"]["memory"]["delta_bytes"] < 10**9
    table = printed[printed.index("memory, KB") :]
    for heading in ("flash: weights", "RAM: live peak", "arena", "process on x86, measured"):
        assert heading in table
    assert max(len(line) for line in printed.splitlines() if "ms p50" in line) < 160


def test_layers_stand_beside_the_figures(without_arm: tuple[Recipe, dict[str, Any], str]) -> None:
    recipe = without_arm[0]
    folder = locations.benchmark_folder(recipe)
    record = json.loads((folder / "layers.json").read_text(encoding="utf-8"))
    assert record["cpu"] is None
    assert sorted(record["models"]) == ["big fp32", "big s8s8", "small fp32", "small s8s8"]
    found = record["models"]["big s8s8"]["layers"]
    assert sum(layer["macs"] for layer in found) == graphs.MACS
    assert "QLinearConv" in (folder / "layers-big-s8s8.md").read_text(encoding="utf-8")
    assert (folder / "layers-big-s8s8.svg").read_bytes().startswith(b"<?xml")
    benchmark_layers.remove(folder)
    assert list(folder.glob("layers*")) == []


def test_other_stages_rows_are_shown_with_their_kind(without_arm: tuple[Recipe, dict[str, Any], str]) -> None:
    plain, record, _ = without_arm
    rows = [
        {"model": "big", "cycles": 943_648, "export_digest": record["rows"][0]["export_digest"]},
        {"model": "gone", "cycles": 1, "export_digest": "0" * 64},
    ]
    table = extra_tables.ExtraTable(
        name="npu", title="Ethos-U55-128 by Vela", kind="estimate", rows=tuple(rows), run="ossicle npu",
        columns=(extra_tables.Column(key="model", heading="model"),
                 extra_tables.Column(key="cycles", heading="cycles", decimals=0)),
    )  # fmt: skip
    extra_tables.write(locations.benchmark_folder(plain), table)
    _, printed = _run(plain)
    assert "Ethos-U55-128 by Vela (estimate)" in printed
    assert "943,648" in printed
    assert "gone" not in printed
    assert "1 rows of older exports left out; anew: ossicle npu" in printed


def test_a_second_run_reuses_and_a_changed_setting_does_not(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.change(_only(recipe, "big"), {"benchmark.layers": False})
    first, _ = _run(_without_arm(recipe))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(benchmark, "_measure", refuse)
    again, printed = _run(_without_arm(recipe))
    assert again == first
    assert "reused" in printed
    with pytest.raises(AssertionError, match="measured again"):
        _run(recipes.change(_without_arm(recipe), {"benchmark.latency_runs": 11}))


def test_where_arm_cannot_be_emulated_the_rows_say_why(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.change(_only(recipe, "small"), {"benchmark.layers": False})

    def refuse(cache: Path | None = None) -> None:
        raise MissingDependencyError("cannot build the aarch64 root", got="apt-get is not installed")

    monkeypatch.setattr(arm_root, "prepare", refuse)
    monkeypatch.setattr(arm_root, "is_ready", lambda cache=None: False)
    monkeypatch.setattr(arm_root, "missing", lambda: "apt-get is not installed")
    record, printed = _run(recipe)
    for row in record["rows"]:
        assert "arm" not in row
        if row["precision"] in ("fp32", "s8s8") and row["kind"] == "student":
            assert "apt-get is not installed" in row["not_measured"]["arm"]
    assert "not measured: cannot build the aarch64 root: apt-get is not installed" in printed
    assert "reused" in _run(recipe)[1]
    # Once apt is there, the counts are worth another try.
    monkeypatch.setattr(arm_root, "missing", lambda: None)
    assert "reused" not in _run(recipe)[1]


def test_counts_and_failures_of_arm_stand_in_their_rows(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = {"equal": True, "max_abs_difference": 0.0, "cosine": 1.0, "believable": True}

    def count(model: Path, value: object, cpu: str, *, cache: Path | None) -> arm.ArmCount:
        if model.name == "frontend.onnx":
            raise MeasurementError("the emulated cortex-a76 did not finish", got="stopped")
        many = 4_000_000 if "s8s8" in model.name else 1_000_000
        return arm.ArmCount(cpu, many, 1, 0, 2, 3, 0, 0.0, 5, comparison)

    def count_layers(model: Path, value: object, cpu: str, *, cache: Path | None) -> arm_layers.LayerCounts:
        if "s8s8" in model.name:
            raise MeasurementError("the profile's nodes do not fit", got="7")
        return arm_layers.LayerCounts(cpu, tuple(range(1_000, 1_100)), 0, 28, 5)

    monkeypatch.setattr(arm, "count", count)
    monkeypatch.setattr(arm_layers, "count", count_layers)
    monkeypatch.setattr(arm_root, "prepare", lambda cache=None: arm_root.ArmRoot(Path(), {"host": ["qemu"]}))
    monkeypatch.setattr(arm_root, "is_ready", lambda cache=None: True)
    recipe = _only(recipe, "small")
    record, printed = _run(recipe)
    rows = {(r["model"], r["precision"]): r for r in record["rows"]}
    assert rows["small", "s8s8"]["arm"]["cortex-a76"]["instructions"] == 4_000_000
    assert "u8s8" in rows["small", "u8s8"]["not_measured"]["arm"]
    assert "did not finish" in rows["log-mel frontend", "fp32"]["not_measured"]["arm cortex-a76"]
    said = "small on cortex-a76: int8 executes 4.00 x the instructions of float32: ship float32"
    assert f"{said}, for int8 has neighbour overlap 0.900 < 0.97\n" in printed
    assert record["arm"]["packages"] == {"host": ["qemu"]}
    assert record["arm"]["processors"]["cortex-a76"]["part"] == "0xd0b"
    layers = json.loads((locations.benchmark_folder(recipe) / "layers.json").read_text(encoding="utf-8"))
    assert layers["cpu"] == "cortex-a76"
    assert [entry["instructions"] for entry in layers["models"]["small fp32"]["layers"]][:2] == [1_000, 1_001]
    assert {entry["instructions"] for entry in layers["models"]["small s8s8"]["layers"]} == {None}
    assert "do not fit" in rows["small", "s8s8"]["not_measured"]["layers cortex-a76"]


@pytest.mark.parametrize(
    ("instructions", "lost", "verdict"),
    [
        (40, [], "0.40 x the instructions of float32: ship int8"),
        (40, ["probe drop 0.020 > 0.005"], "ship float32, for int8 has probe drop 0.020 > 0.005"),
        (100, [], "1.00 x the instructions of float32: ship float32"),
    ],
)
def test_int8_is_shipped_where_it_is_cheaper_and_loses_nothing(
    instructions: int, lost: list[str], verdict: str
) -> None:
    counts = {"fp32": 100, "s8s8": instructions}
    rows = [
        {
            "kind": "student",
            "model": "m",
            "precision": name,
            "not_measured": {},
            "arm": {"a": {"instructions": n}},
        }
        for name, n in counts.items()
    ]
    assert benchmark_table.notes({"rows": rows}, losses={"m": lost})[0].endswith(verdict)


@pytest.mark.exhaustive
def test_real_counts_where_qemu_can_be_had(recipe: Recipe) -> None:
    try:
        arm_root.prepare()
    except (MissingDependencyError, MeasurementError) as error:
        pytest.skip(f"no emulated ARM here: {error.problem}: {error.got}")
    record, printed = _run(_only(recipe, "big"))
    for row in record["rows"]:
        if row["kind"] == "student" and row["precision"] == "s8s8":
            assert row["arm"]["cortex-a76"]["comparison"]["equal"]
            assert row["arm"]["cortex-a76"]["instructions"] > graphs.MACS / 16
    assert "bit-equal" in printed
    layers = json.loads((locations.benchmark_folder(recipe) / "layers.json").read_text(encoding="utf-8"))
    counted = {entry["op"]: entry["instructions"] for entry in layers["models"]["big s8s8"]["layers"]}
    assert counted["QLinearConv"] > counted["Flatten"] >= 0


def test_nothing_exported_names_the_command(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(locations, "export_folder", lambda run: tmp_path / "absent")
    with pytest.raises(MissingArtifactError) as caught:
        _run(recipe)
    assert "ossicle export toy" in str(caught.value)
