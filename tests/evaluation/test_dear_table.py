"""DEAR's rows and labels: one test a trap."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ManifestError, MissingArtifactError
from pipeline.evaluation import dear_table
from pipeline.evaluation.split_task import SplitTask
from tests.evaluation import fabricated_dear as dear


def tasks(root: Path, rows: list[dear.Row]) -> dict[str, SplitTask]:
    read = dear_table.read(dear.write_table(root, rows))
    return {task.name.removeprefix("dear_"): task for task in dear_table.tasks(read)}


def labels(task: SplitTask, seconds: int = dear.SECONDS) -> dict[tuple[str, int], object]:
    """Return (track, second from 1, or 0 of a whole track) -> label."""
    places = [int(row) % seconds + 1 if task.unit == "second" else 0 for row in task.rows]
    return dict(zip(zip(task.groups.tolist(), places, strict=True), task.truth.tolist(), strict=True))


def scenes(rows: list[dear.Row]) -> list[dear.Row]:
    return [row for row in rows if row["environmentClass"]]


def test_the_eight_tasks_have_the_rows_units_labels_and_metrics_of_the_paper(tmp_path: Path) -> None:
    rows = dear.rows()
    found = tasks(tmp_path, rows)
    assert tuple(found) == dear_table.TASKS
    assert {name: (task.unit, task.metric) for name, task in found.items()} == {
        **dict.fromkeys(("environment", "indoor_outdoor", "stationary_transient"), ("track", "mcc")),
        "speech_present": ("second", "mcc"),
        **dict.fromkeys(("speakers_active", "drr", "rt60", "snr"), ("second", "r2")),
    }
    each = [(row, k) for row in scenes(rows) for k in range(1, dear.SECONDS + 1)]
    one = [(row, k) for row, k in each if row["nTargets"] == "1.0" and row[f"nTargetsActive_{k}"] != "0"]
    want = {
        "environment": {(row["id"], 0): row["environmentClass"] for row in scenes(rows)},
        "indoor_outdoor": {(row["id"], 0): row["indoorOrOutdoor"] for row in scenes(rows)},
        "stationary_transient": {
            (row["id"], 0): row["stationaryOrTransientNoise"] for row in rows if row not in scenes(rows)
        },
        "speech_present": {
            (row["id"], k): "speech" if int(row[f"nTargetsActive_{k}"]) else "no speech" for row, k in each
        },
        "speakers_active": {(row["id"], k): float(row[f"nTargetsActive_{k}"]) for row, k in each},
        "drr": {(row["id"], k): float(row["targetDRR"]) for row, k in one},
        "rt60": {(row["id"], k): pytest.approx(math.log(float(row["targetRT60"]))) for row, k in one},
        "snr": {(row["id"], k): float(row[f"targetSNR_{k}"]) for row, k in each},
    }
    assert {name: labels(task) for name, task in found.items()} == want
    for task in found.values():
        assert {track[0] for track in task.groups[task.held_out]} == {"t"}
        assert {track[0] for track in task.groups[~task.held_out]} == {"d"}


def test_a_second_without_a_label_is_not_a_second_without_speech(tmp_path: Path) -> None:
    rows = dear.rows()
    rows[0]["nTargetsActive_1"] = ""
    rows[1]["nTargetsActive_2"] = "nan"
    found = tasks(tmp_path, rows)
    for name in ("speech_present", "speakers_active"):
        assert not {("d000", 1), ("d001", 2)} & set(labels(found[name]))
        # Those two, and every second of the tracks of the noise task.
        assert found[name].left_out == {"no label for this task": 2 + 20 * dear.SECONDS}
    assert not {"dn00", "tn00"} & set(found["speech_present"].groups.tolist())


def test_class_ids_are_alphabetical_whatever_the_order_of_rows(tmp_path: Path) -> None:
    rows = dear.rows()
    forward, backward = tasks(tmp_path / "a", rows), tasks(tmp_path / "b", rows[::-1])
    assert forward["environment"].classes == list(dear.ENVIRONMENTS)
    assert forward["speech_present"].classes == ["no speech", "speech"]
    for name, task in forward.items():
        np.testing.assert_array_equal(task.truth, backward[name].truth)
        np.testing.assert_array_equal(task.rows, backward[name].rows)


def test_drr_and_rt60_want_one_target_known_to_be_active(tmp_path: Path) -> None:
    rows = dear.rows()
    for row in rows[:5]:
        assert row["nTargets"] == "1.0"
        row |= {"nTargetsActive_1": "1", "nTargetsActive_2": "1"}
    rows[0]["nTargetsActive_1"] = ""  # unknown is not active
    rows[1]["nTargetsActive_2"] = "0"
    rows[2]["nTargets"] = "2"
    rows[3]["nTargets"] = ""
    rows[4]["targetRT60"] = ""
    found = tasks(tmp_path, rows)
    drr = set(labels(found["drr"]))
    assert not {("d000", 1), ("d001", 2), ("d002", 1), ("d003", 1)} & drr
    assert {("d000", 2), ("d001", 1), ("d004", 1)} <= drr
    assert drr - set(labels(found["rt60"])) == {("d004", 1), ("d004", 2)}


def test_an_infinite_snr_is_no_value(tmp_path: Path) -> None:
    rows = dear.rows()
    rows[0]["targetSNR_1"] = "-inf"
    assert ("d000", 1) not in labels(tasks(tmp_path, rows)["snr"])


def test_ids_are_text(tmp_path: Path) -> None:
    rows = dear.rows()
    for number, row in enumerate(rows):
        row["id"] = f"{number:04}"
    read = dear_table.read(dear.write_table(tmp_path, rows))
    assert read.paths[7] == tmp_path / "files" / "0007.wav"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"split": "validation"}, "in no known split"),
        ({"id": "../secret"}, "no file name"),
        ({"id": "d001"}, "lists a track twice"),
        ({"targetDRR": "loud"}, "targetDRR of track d000 is no number"),
        ({"nTargetsActive_1": "1.5"}, "no count"),
        ({"targetRT60": "0"}, "no logarithm"),
        ({"nTargets": "one"}, "nTargets of track d000 is no number"),
    ],
)
def test_impossible_cells_are_refused(change: dear.Row, problem: str, tmp_path: Path) -> None:
    rows = dear.rows()
    rows[0] |= change
    if "/" in rows[0]["id"]:
        (tmp_path / "secret.wav").touch()
    with pytest.raises(ManifestError, match=problem):
        tasks(tmp_path, rows)


def test_seconds_are_numbered_without_a_gap(tmp_path: Path) -> None:
    rows = dear.rows(seconds=3)
    for row in rows:
        row["targetSNR_4"] = row.pop("targetSNR_2")
    with pytest.raises(ManifestError, match="without a gap"):
        dear_table.read(dear.write_table(tmp_path, rows))


def test_missing_pieces_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="DEAR's layout"):
        dear_table.read(tmp_path)
    rows = dear.rows()
    dear.write_table(tmp_path, rows)
    (tmp_path / "files" / "t003.wav").unlink()
    with pytest.raises(MissingArtifactError, match=r"1 of 95 tracks") as caught:
        dear_table.read(tmp_path)
    assert "t003.wav" in str(caught.value)
    for row in rows:
        del row["nTargets"]
    with pytest.raises(ManifestError, match="nTargets"):
        dear_table.read(dear.write_table(tmp_path, rows))


def test_a_task_of_one_class_or_of_tracks_in_both_splits_is_refused(tmp_path: Path) -> None:
    rows = dear.rows()
    for row in rows:
        if row["split"] == "test" and row["environmentClass"]:
            row["indoorOrOutdoor"] = "indoor"
    with pytest.raises(ManifestError, match="test split has nothing to tell apart"):
        tasks(tmp_path, rows)
    read = dear_table.read(dear.write_table(tmp_path, rows))
    found, impossible = dear_table.possible_tasks(read)
    assert list(impossible) == ["Indoor or outdoor"]
    assert [task.name for task in found] == [
        f"dear_{name}" for name in dear_table.TASKS if name != "indoor_outdoor"
    ]
    values = np.array(["a", "b", "a", "b"])
    places = np.arange(4)
    with pytest.raises(ManifestError, match="in both splits"):
        SplitTask("t", "t", "", "mcc", "track", places, values, np.array([*"xyzx"]), places >= 2)
    with pytest.raises(ManifestError, match="a class that development lacks"):
        SplitTask("t", "t", "", "mcc", "track", places, np.array([*"abac"]), np.array([*"wxyz"]), places >= 2)
