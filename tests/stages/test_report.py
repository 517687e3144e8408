"""The report: its numbers are those of the artifacts, each has a maker on the page, and nothing is fetched."""

from __future__ import annotations

import html
import io
import re
import statistics
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import artifact
from pipeline.recipe import expand
from stages import locations, report
from tests.stages import report_fixture as made


class Page(HTMLParser):
    """Ids, links, table cells and whatever would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        elif tag in ("script", "link", "iframe", "object"):
            self.fetched.append(tag)
        for name in ("src", "href", "xlink:href"):
            if tag != "a" and found.get(name) and not str(found[name]).startswith(("#", "data:")):
                self.fetched.append(str(found[name]))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")
        elif tag == "small" and self._cell:
            self.rows[-1][-1] += " | "

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made.place(tmp_path, monkeypatch)
    return tmp_path


def write(root: Path) -> tuple[str, str]:
    printed = io.StringIO()
    folder = report.run(made.recipe(root), console=Console(file=printed, width=400))
    return (folder / "report.html").read_text(encoding="utf-8"), printed.getvalue()


@pytest.fixture(scope="module")
def full_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every artifact, and the report of them all; drawn once for the tests that only read it."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        made.place(root, patch)
        made.write_store(root)
        made.write_runs(root)
        made.write_evaluation(root)
        made.write_benchmark(root)
        write(root)
        yield root


@pytest.fixture
def full(full_root: Path) -> str:
    return (locations.report_folder(made.recipe(full_root)) / "report.html").read_text(encoding="utf-8")


def test_one_file_that_fetches_nothing_and_whose_links_arrive(full: str, full_root: Path) -> None:
    page = Page(full)
    assert page.fetched == []
    assert "@import" not in full
    assert not re.search(r"url\((?!#)", full)
    assert len(page.ids) == len(set(page.ids))
    missing = {link for link in page.links if not link.startswith("#") or link[1:] not in page.ids}
    assert missing == set()
    used = set(re.findall(r"url\(#([^)]+)\)", full)) | set(re.findall(r'xlink:href="#([^"]+)"', full))
    assert used <= set(page.ids)
    picture = (locations.report_folder(made.recipe(full_root)) / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_cost_says_memory_layers_and_estimates(full: str) -> None:
    cost = full[full.index('id="cost"') : full.index('id="space"')]
    for text in (
        "live peak",
        "arena",
        "8,789",
        "Layers of cnn4_wide fp32",
        "0 FusedConv 24x32x58",
        "emulated cortex-a76",
    ):
        assert text in cost
    assert "Layers of micronet_m0" not in cost
    assert re.search(r"Ethos-U55-128 by Vela \(estimate\)\. A model(&#39;|\')s figures", cost)
    rows = re.findall(r"Gemm.*?</tr>", cost, flags=re.DOTALL)
    assert any("75.0" in row for row in rows)


def test_headline_is_the_share_of_the_gap(full: str, full_root: Path) -> None:
    rows = made.scores(full_root)
    expected = {}
    for probe in ("knn", "linear"):
        here = [r for r in rows if (r.task, r.probe) == ("esc10", probe)]
        teacher = next(r.score for r in here if r.role == "teacher")
        floor = statistics.fmean(r.score for r in here if r.role == "random" and r.floor == "cnn4_wide")
        student = statistics.fmean(r.score for r in here if r.role == "student" and r.name == "cnn4_wide")
        expected[probe] = round(100 * (student - floor) / (teacher - floor))
    found = re.search(r"<h1>(.*?)</h1>", full)
    assert found is not None
    sentence = html.unescape(found[1])
    assert f"recovers {expected['knn']} % (k-NN probe) and {expected['linear']} % (linear probe)" in sentence
    assert "on ESC-10, with 1/25 of the teacher's parameters and 1/141 of its MACs" in sentence


def test_scores_intervals_and_retention_are_those_of_the_evaluation(full: str, full_root: Path) -> None:
    rows = [r for r in made.scores(full_root) if (r.task, r.probe, r.role) == ("esc10", "knn", "int8")]
    ours = [r for r in rows if r.name == "cnn4_wide"]
    mean, low, high = (statistics.fmean(getattr(r, name) for r in ours) for name in ("score", "low", "high"))
    teacher = next(
        r.score for r in made.scores(full_root) if (r.task, r.probe, r.role) == ("esc10", "knn", "teacher")
    )
    retention = statistics.fmean(r.score / teacher for r in ours)
    row = next(r for r in Page(full).rows if r[0] == "cnn4_wide, int8" and len(r) == 9)
    assert row[1] == "3"
    assert row[2] == f"{100 * mean:.1f} | {100 * low:.0f}–{100 * high:.0f} · {100 * retention:.0f} %"


def test_every_row_of_figures_names_the_artifact_that_made_it(full: str, full_root: Path) -> None:
    digests = {artifact.read(locations.run_folder(run)).digest for run in expand(made.recipe(full_root))}
    page = Page(full)
    assert {f"made-{digest[:12]}" for digest in digests} <= set(page.ids)
    tables = [r for r in page.rows if r and re.fullmatch(r"[0-9a-f]{8}", r[-1])]
    known = {i.removeprefix("made-")[:8] for i in page.ids if i.startswith("made-")}
    assert len(tables) > 30
    assert {r[-1] for r in tables} <= known
    for text in ("git revision", "torch", "onnxruntime", "A &lt;fast&gt; processor", "CC-BY-4.0"):
        assert text in full
    assert "<fast>" not in full


def test_instructions_are_counts_and_no_arm_time_is_shown(full: str) -> None:
    rows = Page(full).rows
    heading = next(r for r in rows if "A76" in r)
    s8s8 = next(r for r in rows if r[:2] == ["cnn4_wide", "int8 S8S8"])
    assert s8s8[heading.index("A76")] == "4.09"
    assert s8s8[heading.index("ARM = x86")] == "bit-equal"
    assert s8s8[heading.index("p50 ms")] == "0.54 | 0.50–0.85"
    text = re.sub(r"<[^>]+>", " ", full)
    assert "executes 0.45 times the instructions" in text
    assert "A count, not a time" in text
    assert "QEMU is not installed" in text


def test_the_same_artifacts_are_not_reported_twice(full: str, full_root: Path) -> None:
    again, printed = write(full_root)
    assert again == full
    assert "reused" in printed


def test_without_any_artifact_each_section_says_what_to_run(root: Path) -> None:
    page, printed = write(root)
    for command in (
        "ossicle embed paper",
        "ossicle distill paper",
        "ossicle evaluate paper",
        "ossicle benchmark paper",
    ):
        assert command in page
        assert command in printed
    assert "No student of this recipe is trained yet" not in page
    assert "no share of the teacher-over-random gap was measured" in page
    assert Page(page).fetched == []


def test_runs_alone_give_curves_and_notes_for_the_rest(root: Path) -> None:
    made.write_runs(root, exported=False)
    page, _ = write(root)
    assert "Not exported: cnn4_wide-seed1, cnn4_wide-seed2, cnn4_wide-seed3, micronet_m0-seed1" in page
    assert "Not measured. Run: ossicle evaluate paper" in page
    assert ">cnn4_wide-seed2</text>" in page
    assert not (locations.report_folder(made.recipe(root)) / "report.png").exists()


def test_a_finished_stage_replaces_its_note(root: Path) -> None:
    made.write_runs(root)
    before, _ = write(root)
    made.write_evaluation(root)
    after, printed = write(root)
    assert "ossicle evaluate paper" in before
    assert "ossicle evaluate paper" not in after
    assert "reused" not in printed
