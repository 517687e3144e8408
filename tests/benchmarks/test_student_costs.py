"""The regression gate: its rule, the committed sizes of all shipped students, and the cheapest one counted anew."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import MeasurementError, MissingDependencyError
from pipeline.measure import arm_root
from tests.benchmarks import student_costs as gate

STUDENT = {
    "parameters": 1_000,
    "macs": 50_000,
    "fp32": {"file_bytes": 5_000, "instructions": {"cortex-a76": 10_000}},
    "s8s8": {"file_bytes": 2_000, "int8_mac_share": 1.0, "instructions": {"cortex-a76": 4_000}},
}


def _record(**students: dict[str, Any]) -> dict[str, Any]:
    return {"students": students, "versions": {}}


def _changed(precision: str, key: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(STUDENT)
    made[precision][key] = value  # type: ignore[index]
    return made


def test_within_two_per_cent_is_within_the_gate() -> None:
    committed = _record(mn04=STUDENT)
    assert list(gate.violations("mn04", STUDENT, committed)) == []
    assert (
        list(gate.violations("mn04", _changed("s8s8", "instructions", {"cortex-a76": 4_079}), committed))
        == []
    )
    assert list(gate.violations("mn04", _changed("fp32", "file_bytes", 5_099), committed)) == []


@pytest.mark.parametrize(
    "precision,key,value,words",
    [
        ("s8s8", "instructions", {"cortex-a76": 4_081}, ("cortex-a76 instructions", "+2.0%", "worse")),
        ("s8s8", "instructions", {"cortex-a76": 3_000}, ("-25.0%", "better")),
        ("fp32", "file_bytes", 6_000, ("fp32 file_bytes", "5,000 committed, 6,000 now", "worse")),
        ("s8s8", "int8_mac_share", 0.9, ("int8_mac_share", "-10.0%", "worse")),
    ],
)
def test_past_two_per_cent_is_named_with_the_command(
    precision: str, key: str, value: Any, words: tuple[str, ...]
) -> None:
    (line,) = gate.violations("mn04", _changed(precision, key, value), _record(mn04=STUDENT))
    for word in (*words, "make benchmark-gate-update"):
        assert word in line


def test_a_student_that_is_not_committed_fails() -> None:
    (line,) = gate.violations("mn04", STUDENT, _record())
    assert "not among the committed figures" in line


def test_int8_on_arm_must_equal_x86_and_attention_nearly() -> None:
    def student(equal: bool, cosine: float | None) -> dict[str, Any]:
        compared = {"equal": equal, "cosine": cosine, "max_abs_difference": 0.01}
        return {"s8s8": {"arm_equals_x86": {"cortex-a76": compared}}}

    assert list(gate.disagreements("mn04", student(True, 1.0))) == []
    found = next(iter(gate.disagreements("mn04", student(False, 1 - 1e-12))))
    assert "largest difference 0.01" in found and "expected equal bits" in found
    assert list(gate.disagreements("mobilevitv2_050", student(False, 0.9995))) == []
    for cosine in (0.998, None):
        assert "expected a cosine of 0.999" in next(
            iter(gate.disagreements("mobilevitv2_050", student(False, cosine)))
        )


def test_exit_status_and_update(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"mn04": STUDENT}
    monkeypatch.setattr(gate, "COMMITTED", tmp_path / "costs.json")
    monkeypatch.setattr(gate, "versions", lambda: {"onnxruntime": "1"})
    monkeypatch.setattr(
        gate, "measured", lambda names: {"versions": {"onnxruntime": "1"}, "students": dict(made)}
    )
    assert gate.main(["--only", "mn04", "--update"]) == 0
    assert gate.main(["--only", "mn04"]) == 0
    made["mn04"] = _changed("fp32", "file_bytes", 9_000)
    assert gate.main(["--only", "mn04"]) == 1
    assert "+80.0%" in capsys.readouterr().out
    assert gate.main(["--only", "mn04", "--update"]) == 0
    assert gate.main(["--only", "mn04"]) == 0
    monkeypatch.setattr(gate, "versions", lambda: {"onnxruntime": "2"})
    assert gate.main(["--only", "mn04"]) == 0
    assert "onnxruntime 1 -> 2" in capsys.readouterr().err
    assert gate.main(["--only", "mn40"]) == 2
    assert "did you mean mn04?" in capsys.readouterr().err


def test_what_cannot_be_measured_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(names: object) -> None:
        raise MissingDependencyError("cannot build the aarch64 root", got="apt-get is not installed")

    monkeypatch.setattr(gate, "measured", refuse)
    assert gate.main(["--only", "mn04"]) == 2
    assert "apt-get is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(gate.MEMBERS))
def test_sizes_are_the_committed_ones(name: str) -> None:
    committed = gate.committed()
    found = gate.network_costs(name)
    assert {key: committed["students"][name][key] for key in found} == found
    assert committed["input_shape"] == list(gate.SHAPE)


@pytest.fixture(scope="module")
def cheapest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return gate.export(gate.CHEAPEST, tmp_path_factory.mktemp("gate"))


def test_the_cheapest_is_within_the_gate(cheapest: dict[str, Path]) -> None:
    try:
        arm_root.prepare()
    except (MissingDependencyError, MeasurementError) as error:
        pytest.skip(f"no emulated ARM here: {error.problem}: {error.got}")
    got = gate.file_costs(cheapest, cpus=("cortex-a76",))
    committed = gate.committed()
    assert list(gate.violations(gate.CHEAPEST, got, committed)) == []
    assert list(gate.disagreements(gate.CHEAPEST, got)) == []
    # The files' weights are the network's, a quarter of them in int8.
    parameters = committed["students"][gate.CHEAPEST]["parameters"]
    assert got["fp32"]["weight_bytes"] == pytest.approx(4 * parameters, rel=0.02)
    assert got["s8s8"]["weight_bytes"] == pytest.approx(parameters, rel=0.15)


def test_native_times_only_what_computes_the_same(cheapest: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / gate.CHEAPEST
    folder.mkdir()
    np.save(folder / "input.npy", gate.value())
    for precision, path in cheapest.items():
        (folder / path.name).write_bytes(path.read_bytes())
        np.save(folder / f"{precision}.npy", gate.arm.x86_reference(path, gate.value()))
    reference = np.load(folder / "s8s8.npy")
    np.save(folder / "s8s8.npy", reference[:, ::-1])
    record = gate.native(tmp_path)
    found = record["students"][gate.CHEAPEST]
    assert found["fp32"]["p50_ms"] > 0
    assert "p50_ms" not in found["s8s8"]
    assert "DIFFERS" in gate.native_markdown(record)
    assert record["processor"] in gate.native_markdown(record)
    json.dumps(record)
