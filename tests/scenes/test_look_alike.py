"""Scores on generated scenes say so, and stand beside no paper's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.errors import NothingToTellApartError
from pipeline.evaluation import dear_table
from pipeline.recipe import DATA_MANIFESTS, overridden
from stages import evaluate_suites
from stages.report_site import published
from tests.evaluation import fabricated_dear


def chosen(folder: Path) -> evaluate_suites.ChosenSuite:
    (found,) = evaluate_suites.choose(overridden([f"evaluate.audio_roots.dear={folder}"]))
    return found


def test_generated_scenes_are_called_a_look_alike_and_a_dear_folder_is_not(
    scenes: Path, tmp_path: Path
) -> None:
    generated, given = chosen(scenes), chosen(fabricated_dear.write(tmp_path / "dear"))
    assert generated.look_alike and not given.look_alike
    assert generated.suite.name == given.suite.name == "dear"
    assert generated.suite.title == f"Look-alike of {given.suite.title}"
    assert "ossicle scenes" in generated.suite.about and "licences.parquet" in generated.suite.licence
    assert "ossicle" not in given.suite.about


def test_what_scenes_cannot_ask_is_left_out_and_of_dear_is_an_error(tmp_path: Path) -> None:
    rows = fabricated_dear.rows()
    for row in rows:
        row["indoorOrOutdoor"] = row["indoorOrOutdoor"] and "indoor"
    given = chosen(fabricated_dear.write(tmp_path / "dear"))
    tracks = dear_table.read(fabricated_dear.write_table(tmp_path / "dear", rows))
    generated = dataclasses.replace(given, tracks=tracks, look_alike=True)
    tasks, without = evaluate_suites.posed_tasks(generated)
    assert [task.name for task in tasks] == [
        f"dear_{name}" for name in dear_table.TASKS if name != "indoor_outdoor"
    ]
    assert "nothing to tell apart" in str(without["Indoor or outdoor"])
    with pytest.raises(NothingToTellApartError, match="dear_indoor_outdoor"):
        evaluate_suites.posed_tasks(dataclasses.replace(generated, look_alike=False))
    for row in rows:
        row.update(dict.fromkeys(row.keys() - {"id", "split"}, ""))
    empty = dear_table.read(fabricated_dear.write_table(tmp_path / "dear", rows))
    with pytest.raises(NothingToTellApartError):
        evaluate_suites.posed_tasks(dataclasses.replace(generated, tracks=empty))


def test_published_numbers_stand_beside_dear_and_not_beside_a_look_alike() -> None:
    papers = published.read(DATA_MANIFESTS)
    names = {row.task for row in papers if row.task.startswith("dear")}
    assert len(names) == 9
    for look_alike in (True, False):
        scores = {"tasks": [{"name": name, "look_alike": look_alike} for name in names]}
        left = published.comparable(papers, scores)
        assert names & {row.task for row in left} == (set() if look_alike else names)
        assert len(left) == len([row for row in papers if row.task not in names or not look_alike])
    assert published.comparable(papers, {}) == papers
