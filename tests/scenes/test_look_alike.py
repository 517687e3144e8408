"""Scores on generated scenes say so, and stand beside no paper's."""

from __future__ import annotations

from pathlib import Path

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
