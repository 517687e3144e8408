"""Tables of other stages beside the benchmark's, and names of ARM cores."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import MeasurementError
from pipeline.measure.arm_cores import core_name, is_server
from pipeline.measure.extra_tables import Column, ExtraTable, cells, read, write


def _table(**changes: object) -> ExtraTable:
    given = {
        "name": "ethos-u", "title": "Ethos-U55-128 by Vela", "kind": "estimate", "run": "ossicle npu demo",
        "columns": [Column(key="model", heading="model"), Column(key="cycles", heading="M cycles", decimals=2)],
        "rows": [{"model": "a", "cycles": 1.234, "export_digest": "11"}, {"model": "b", "cycles": None}],
    }  # fmt: skip
    return ExtraTable.model_validate({**given, **changes})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, _table())
    write(tmp_path, _table(name="another"))
    tables, notes = read(tmp_path)
    assert [table.name for table in tables] == ["another", "ethos-u"]
    assert notes == []
    assert [cells(tables[1], row) for row in tables[1].rows] == [["a", "1.23"], ["b", "-"]]


def test_rows_of_an_older_export_are_left_out_with_a_note(tmp_path: Path) -> None:
    write(tmp_path, _table())
    assert len(read(tmp_path, {"11"})[0][0].rows) == 2
    tables, notes = read(tmp_path, {"22"})
    assert [row["model"] for row in tables[0].rows] == ["b"]
    assert "1 rows of older exports" in notes[0]
    assert "ossicle npu demo" in notes[0]


def test_a_kind_must_be_said_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="kind"):
        _table(kind="fast")
    (tmp_path / "table-x.json").write_text("{}", encoding="utf-8")
    with pytest.raises(MeasurementError, match=r"table-x\.json is no table"):
        read(tmp_path)


def test_server_cores_are_named_as_such() -> None:
    pi = {"implementer": "0x41", "part": "0xd0b", "name": "Raspberry Pi 5", "machine": "aarch64"}
    graviton = {"implementer": "0x41", "part": "0xd4f", "name": None, "machine": "aarch64"}
    ampere = {"implementer": "0xc0", "part": "0xac3", "name": None, "machine": "aarch64"}
    assert core_name(pi) == "Cortex-A76 board core"
    assert core_name(graviton) == "Neoverse V2 server core"
    assert core_name(ampere).endswith("server core")
    assert [is_server(p) for p in (pi, graviton, ampere)] == [False, True, True]
    assert core_name({"machine": "x86_64", "name": "A processor"}) == "A processor"
