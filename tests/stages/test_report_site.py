"""The report's site: every number is an artifact's and leads to what made it, links arrive, nothing is fetched."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from pipeline.errors import ConfigError
from pipeline.recipe import DATA_MANIFESTS, expand
from stages import evaluation_tasks, locations
from stages.report_page import evidence
from stages.report_site import chart, published, reliability, task_page
from stages.report_site.chart import Point
from tests.stages import report_fixture as made
from tests.stages import site_fixture
from tests.stages.site_fixture import COUNTS, Html


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        site_fixture.write_all(root, patch)
        yield root


@pytest.fixture(scope="module")
def site(root: Path) -> Path:
    return locations.report_folder(made.recipe(root))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Html]:
    return {path.name: Html(path) for path in sorted(site.glob("*.html")) if path.name != "report.html"}


def test_a_page_for_each_run_each_task_and_each_model(site: Path, root: Path, pages: dict[str, Html]) -> None:
    runs = {f"run-{run.label}.html" for run in expand(made.recipe(root))}
    tasks = {f"task-{task}.html" for task in (*made.TASKS, "dear_drr")}
    assert runs | tasks | {
        "index.html",
        "published.html",
        "provenance.html",
        "run-teacher-aisfx.html",
    } <= set(pages)
    assert sum(path.stat().st_size for path in site.iterdir()) < 5_000_000


def test_nothing_is_fetched_and_every_link_arrives(site: Path, pages: dict[str, Html]) -> None:
    outside = {row.link for row in published.read(DATA_MANIFESTS)}
    for name, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), name
        assert set(page.loaded) <= {"site.css", "site.js", "data:,"}, name
        for link in page.links:
            if link in outside:
                continue
            file, _, anchor = link.partition("#")
            target = file or name
            if target == "report.html":  # written beside the site by ossicle report; see below
                continue
            assert target in pages or (site / target).is_file(), (name, link)
            assert not anchor or anchor in pages[target].ids, (name, link)
    for asset in ("site.css", "site.js"):
        text = (site / asset).read_text(encoding="utf-8")
        assert not re.search(r"https?://|@import|url\(", text)


def test_scores_are_those_of_the_evaluation_and_lead_to_their_run(root: Path, pages: dict[str, Html]) -> None:
    table = pages["index.html"].tables["Scores and costs of every model"]
    heads = [text for text, _ in table[0]]
    rows = {tuple(text for text, _ in row[:3]): row for row in table[1:]}
    here = [r for r in made.scores(root) if (r.task, r.probe) == ("esc10", "linear")]
    ours = statistics.fmean(r.score for r in here if r.name == "cnn4_wide" and r.role == "student")
    several = rows["cnn4_wide", "student", "linear"][heads.index("ESC-10")]
    assert several == (f"{100 * ours:.1f}", "task-esc10.html#scores")
    one = next(r.score for r in here if r.name == "micronet_m0" and r.role == "int8")
    single = rows["micronet_m0", "student, int8", "linear"][heads.index("ESC-10")]
    assert single == (f"{100 * one:.1f}", "run-micronet_m0-seed1.html")
    macs = rows["cnn4_wide", "student", "linear"][heads.index("M MACs")]
    assert macs == ("13.70", "run-cnn4_wide-seed1.html#cost")


def test_every_number_of_a_task_leads_to_its_run(root: Path, pages: dict[str, Html]) -> None:
    table = pages["task-drums.html"].tables["Scores of every run"]
    ours = [r for r in made.scores(root) if r.task == "drums"]
    assert len(table) - 1 == len(ours)
    for row in table[1:]:
        assert all(href.startswith("run-") for text, href in row[3:] if re.match(r"[\d.]", text))


def test_published_numbers_are_marked_and_say_where_they_stand(pages: dict[str, Html]) -> None:
    table = pages["task-dear_drr.html"].tables["Scores of every run"]
    foreign = [row for row in table[1:] if row[1][0] == "published, not reproduced"]
    with (DATA_MANIFESTS / "published.csv").open(encoding="utf-8", newline="") as file:
        stored = [row for row in csv.DictReader(file) if row["task"] == "dear_drr"]
    assert len(foreign) == len(stored) > 0
    beats = next(row for row in foreign if row[0][0] == "BEATs" and row[2][0] == "linear")
    assert beats[3] == ("43.2", "https://arxiv.org/abs/2502.06664")
    whole = pages["published.html"].tables["Published numbers, not reproduced"]
    assert len(whole) - 1 > 150
    assert "published, not reproduced" not in pages["task-drums.html"].tables["Scores of every run"][1][1][0]


def test_confusions_and_classes(pages: dict[str, Html]) -> None:
    page = pages["run-cnn4_wide-seed1.html"]
    matrix = page.tables["Confusion of Drum class, k-NN probe"]
    assert [[int(text) for text, _ in row[1:]] for row in matrix[1:]] == COUNTS
    classes = {
        row[0][0]: [text for text, _ in row[1:]]
        for row in page.tables["Classes of Drum class, k-NN probe"][1:]
    }
    assert classes["clap"] == ["10", "80.0", "72.7", "kick (1)"]
    assert classes["snare"] == ["10", "70.0", "87.5", "clap (3)"]
    of_task = pages["task-drums.html"].tables
    assert "Confusion of cnn4_wide-seed1, k-NN probe" in of_task
    assert "Confusion of aisfx, k-NN probe" in of_task
    assert "Confusion of cnn4_wide-seed2, k-NN probe" not in of_task


def test_statistics_are_tables_of_the_task(pages: dict[str, Html]) -> None:
    tables = pages["task-drums.html"].tables
    conditions = tables["Scores by recording condition"]
    assert [[text for text, _ in row[2:6]] for row in conditions[1:]] == [
        ["k-NN", "phone", "no", "51.2"], ["k-NN", "desk", "yes", "75.0"],
    ]  # fmt: skip
    assert [text for text, _ in tables["Share of each teacher's score"][1][2:]] == [
        "k-NN",
        "aisfx",
        "92.5",
        "90.0",
        "95.0",
    ]
    assert [text for text, _ in tables["Calibration of the probes"][1][3:]] == ["6.1", "0.312"]
    assert tables["Few-shot accuracy"][1][3][0] == "62.5"
    spaces = tables["Geometry of the spaces"]
    heads, row = ([text for text, _ in spaces[place]] for place in (0, 1))
    named = dict(zip(heads, row, strict=True))
    assert (named["overlap@10"], named["linear cka"], named["hubness, skewness"]) == (
        "0.500",
        "0.875",
        "1.500",
    )
    assert "Geometry of the spaces" not in pages["task-esc10.html"].tables


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A report with four clips of a task, of which the student's seeds get three wrong, one file not playable."""
    made.place(tmp_path, monkeypatch)
    made.write_runs(tmp_path)
    made.write_evaluation(tmp_path)
    paths = [tmp_path / f"clip {place}.{'aiff' if place == 2 else 'wav'}" for place in range(4)]
    for place, path in enumerate(paths):
        path.write_bytes(b"RIFF" + bytes([place]) * 100)
    answers = pandas.DataFrame({
        "row": range(4), "truth": ["kick", "kick", "snare", "snare"],
        "cnn4_wide-seed1.knn": ["kick", "clap", "clap", "snare"],
        "cnn4_wide-seed2.knn": ["kick", "clap", "snare", "clap"],
        "cnn4_wide-seed3.knn": ["kick", "clap", "clap", "snare"], "labels-seed1.knn": ["clap"] * 4,
    })  # fmt: skip
    folder = locations.evaluation_folder(made.recipe(tmp_path)) / "predictions"
    folder.mkdir()
    answers.to_parquet(folder / "drums.parquet")
    task = SimpleNamespace(name="drums")
    clips = SimpleNamespace(task=task, frame=pandas.DataFrame({"path": [str(path) for path in paths]}))
    monkeypatch.setattr(evaluation_tasks, "choose", lambda recipe, console, stage: [clips])
    return tmp_path


def test_the_clips_got_most_wrong_can_be_heard(heard: Path) -> None:
    folder = site_fixture.write_site(made.recipe(heard))
    text = (folder / "task-drums.html").read_text(encoding="utf-8")
    assert re.findall(r'<audio[^>]*src="([^"]*)"', text) == [
        "audio/task-drums-1.wav",
        "audio/task-drums-3.wav",
    ]
    assert (folder / "audio" / "task-drums-1.wav").read_bytes() == b"RIFF" + bytes([1]) * 100
    assert "is kick; taken for clap, wrong in 3 of 3 answers" in text
    assert "is snare; taken for clap, wrong in 1 of 3 answers" in text
    assert "clip 2.aiff: no browser plays such files" in text
    assert "<audio" not in (folder / "task-esc10.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("way", "start"), [("embed", "data:audio/wav;base64,UklGR"), ("none", None)])
def test_clips_are_embedded_or_left_out_where_a_key_says_so(heard: Path, way: str, start: str | None) -> None:
    recipe = made.recipe(heard)
    settings = recipe.report.model_copy(update={"audio": way})
    folder = site_fixture.write_site(recipe.model_copy(update={"report": settings}))
    found = re.findall(r'<audio[^>]*src="([^"]*)"', (folder / "task-drums.html").read_text(encoding="utf-8"))
    assert [source.startswith(str(start)) for source in found] == [True] * (2 if start else 0)
    assert not (folder / "audio").exists()


def test_errors_are_shown_in_their_unit_and_on_no_pareto_plot(
    root: Path, site: Path, pages: dict[str, Html]
) -> None:
    value = next(
        r.score for r in made.scores(root) if (r.task, r.probe, r.role) == ("drums", "knn", "teacher")
    )
    assert pages["task-pitch_mae.html"].tables["Scores of every run"][1][3][0] == f"{value:.3f}"
    assert pages["task-drums.html"].tables["Scores of every run"][1][3][0] == f"{100 * value:.1f}"
    index = (site / "index.html").read_text(encoding="utf-8")
    assert 'data-task="Drum class"' in index
    assert 'data-task="Pitch"' not in index


def test_names_are_escaped(site: Path, pages: dict[str, Html]) -> None:
    assert "DRR <of one speaker>" in pages["task-dear_drr.html"].text
    for path in site.glob("*.html"):
        assert "<of one speaker>" not in path.read_text(encoding="utf-8")


def test_a_reliability_curve_is_of_the_stored_bins(site: Path) -> None:
    page = (site / "task-drums.html").read_text()
    assert page.count("Reliability of the k-NN probe") >= 1
    assert "expected calibration error 6.1 %" in page
    assert "Reliability" not in (site / "task-esc10.html").read_text()
    drawing = reliability.draw([{"confidence": [0.4, 0.9], "accuracy": [0.5, 0.7]}], ["teacher"])
    diagonal, curve = drawing.axes[0].get_lines()
    np.testing.assert_array_equal(curve.get_xydata(), [[0.4, 0.5], [0.9, 0.7]])
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])


def test_umap_maps_are_shown_where_the_evaluation_made_them(root: Path) -> None:
    folder = locations.evaluation_folder(made.recipe(root))
    stored, scores = (json.loads((folder / f"{name}.json").read_text()) for name in ("projections", "scores"))
    (key,) = list(stored["drums"]["maps"])[:1]
    points = [[float(place), 1.0] for place in range(120)]
    stored["drums"]["umap"] = {key: points}
    first, second = evidence._maps(stored, scores)
    assert (first.method, second.method) == ("t-SNE", "UMAP")
    np.testing.assert_array_equal(second.spaces[0][1], points)
    assert task_page._maps(second, "drums").caption.startswith(
        "UMAP of the clip embeddings on drums: the same 120"
    )


def test_the_search_and_its_table_are_shown(pages: dict[str, Html]) -> None:
    table = pages["index.html"].tables["The Pareto set and the hand-made students"]
    assert [row[0][0] for row in table[1:]] == ["cnn4_wide", "cnn4_wide", "by hand"]


def test_without_artifacts_the_site_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.place(tmp_path, monkeypatch)
    folder, printed = site_fixture.write(tmp_path)
    assert str(folder / "index.html") in printed
    assert (folder / "report.html").is_file()
    text = (folder / "index.html").read_text(encoding="utf-8")
    for command in ("distill", "evaluate", "benchmark", "embed"):
        assert f"ossicle {command} paper" in text
    assert not list(folder.glob("run-*.html"))


def test_pages_of_runs_that_are_gone_are_removed(root: Path, site: Path) -> None:
    stale = site / "run-gone-seed9.html"
    stale.write_text("old", encoding="utf-8")
    site_fixture.write_site(made.recipe(root))
    assert not stale.exists()
    assert (site / "run-cnn4_wide-seed1.html").is_file()


def test_pareto_keeps_what_nothing_cheaper_equals() -> None:
    points = [
        Point(*p, "student") for p in (("a", 1, 50), ("b", 2, 70), ("c", 3, 70), ("d", 2, 60), ("e", 9, 90))
    ]
    dominated = {
        p.name
        for p in points
        if any(
            q is not p and q.across <= p.across and q.up >= p.up and (q.across, q.up) != (p.across, p.up)
            for q in points
        )
    }
    assert {p.name for p in chart.pareto(points)} == {p.name for p in points} - dominated


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "expected"),
    [
        (0, 60, False, [0, 10, 20, 30, 40, 50, 60]),
        (1.5e6, 2.2e7, True, [2e6, 5e6, 1e7, 2e7]),
        (1, 1e5, True, [1, 10, 100, 1e3, 1e4, 1e5]),
    ],
)
def test_ticks_are_round(low: float, high: float, logarithmic: bool, expected: list[float]) -> None:
    assert chart.Axis(low, high, 0, 100, logarithmic).ticks() == pytest.approx(expected)


@pytest.mark.parametrize(("column", "value"), [("value", "many"), ("unit", "dB"), ("citation", "")])
def test_a_wrong_row_of_published_numbers_is_refused(tmp_path: Path, column: str, value: str) -> None:
    with (DATA_MANIFESTS / published.FILE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:1]
    rows[0][column] = value
    with (tmp_path / published.FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ConfigError, match=r"line 2"):
        published.read(tmp_path)
