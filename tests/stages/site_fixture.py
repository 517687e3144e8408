"""A written site with every part of it: the report's made-up artifacts, and what the evaluation keeps of classes."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import artifact
from pipeline.config import Recipe
from stages import locations, report
from stages.report_page import evidence
from stages.report_site import site
from tests.stages import report_fixture as made

CLASSES = ["clap", "kick", "snare"]
COUNTS = [[8, 1, 1], [0, 10, 0], [3, 0, 7]]
SEARCH_COSTS = {"macs": 2.9e6, "parameters": 333_216.0}


class Html(HTMLParser):
    """Ids, links, what is loaded, and the tables of one page as (caption, rows of cell texts and links)."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tables: dict[str, list[list[tuple[str, str]]]] = {}
        self.text = ""
        self._open: list[str] = []
        self._caption = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag not in self.VOID:
            self._open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
            if self._open[-2:-1] in (["td"], ["th"]):
                cell = self.tables[self._caption][-1][-1]
                self.tables[self._caption][-1][-1] = (cell[0], found["href"])
        elif "src" in found:
            self.loaded.append(found["src"])
        elif tag == "link":
            self.loaded.append(found["href"])
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self.tables[self._caption].append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append(("", ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        if tag == "caption":
            self.tables[self._caption] = []

    def handle_data(self, data: str) -> None:
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif ("td" in self._open or "th" in self._open) and "small" not in self._open:
            cell = self.tables[self._caption][-1][-1]
            self.tables[self._caption][-1][-1] = (cell[0] + data, cell[1])


def write_all(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """Write every artifact and the site, without the one page of all; return the site's folder."""
    made.place(root, patch)
    made.write_store(root)
    made.write_runs(root)
    made.write_evaluation(root)
    made.write_benchmark(root)
    add_statistics(root)
    write_search(root)
    return write_site(made.recipe(root))


def write_site(recipe: Recipe) -> Path:
    """Write the site alone: the one page's figures take most of the time."""
    folder = locations.report_folder(recipe)
    site.write(evidence.gather(recipe), folder, "2026-01-01 00:00 UTC")
    return folder


def write(root: Path) -> tuple[Path, str]:
    """Write the report of what is there."""
    printed = io.StringIO()
    folder = report.run(made.recipe(root), console=Console(file=printed, width=400))
    return folder, printed.getvalue()


def add_statistics(root: Path) -> None:
    """Add confusions and paired differences to the evaluation, and a DEAR task beside the three."""
    folder = locations.evaluation_folder(made.recipe(root))
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    scores["confusions"] = [
        {"task": "drums", "model": model, "probe": "knn", "classes": CLASSES, "counts": COUNTS}
        for model in ("cnn4_wide-seed1", "cnn4_wide-seed2", "teacher-aisfx")
    ]
    scores["differences"] = [
        {
            "task": "drums", "probe": "knn", "model": "cnn4_wide-seed1", "reference": "teacher-aisfx",
            "difference": -0.04, "low": -0.07, "high": -0.01, "decided": True,
        }
    ]  # fmt: skip
    scores |= statistics()
    for key in ("rows", "summary"):
        scores[key] += [{**row, "task": "pitch_mae"} for row in scores[key] if row["task"] == "drums"]
        scores[key] += [{**row, "task": "dear_drr"} for row in scores[key] if row["task"] == "drums"]
    described = {
        **scores["tasks"][0],
        "name": "dear_drr",
        "title": "DRR <of one speaker>",
        "classes": {},
        "metric": "r2",
    }
    scores["tasks"] += [described, {**described, "name": "pitch_mae", "title": "Pitch", "metric": "mae"}]
    artifact.write_json(folder / "scores.json", scores)
    artifact.finish(
        folder, kind="evaluation", config={"with": "statistics"}, inputs={"task:drums": "ef" * 32}
    )


def statistics() -> dict[str, Any]:
    """Return what an evaluation says beside scores, of one model; conditions both as rows and as one list."""
    place = {"task": "drums", "model": "cnn4_wide-seed1", "probe": "knn"}
    condition = {"condition": "phone", "rows": 30, "score": 0.512, "low": 0.4, "high": 0.6, "seen": False}
    other = {**condition, "condition": "desk", "score": 0.75, "seen": True}
    beside = {"teacher": "teacher-aisfx", "neighbour_overlap": {"1": 0.25, "10": 0.5}, "linear_cka": 0.875}
    return {
        "conditions": [{**place, **condition}, {**place, "rows": [other]}],
        "retention": [{**place, "teacher": "teacher-aisfx", "retention": 0.925, "low": 0.9, "high": 0.95}],
        "calibration": [
            {
                **place,
                "expected_calibration_error": 0.061,
                "brier": 0.312,
                "confidence": [0.4, 0.9],
                "accuracy": [0.5, 0.7],
                "clips": [60, 60],
            }
        ],
        "few_shot": [
            {**place, "classifier": "prototypes", "accuracy": 0.625, "low": 0.6, "high": 0.65, "shots": 5}
        ],
        "geometry": [{**place, "effective_rank": 37.5, "hubness": {"skewness": 1.5}, "against": [beside]}],
    }


def write_search(root: Path) -> None:
    """Write one finished budget search of two candidates and a hand-made student."""

    def point(trial: int, score: float, scale: float, member: bool) -> dict[str, Any]:
        costs = {name: value * scale for name, value in SEARCH_COSTS.items()}
        return {"trial": trial, "name": f"trial {trial}", "student": "cnn4_wide", "width": scale, "score": score,
                "outcome": "done", "member": member, "costs": costs, "beaten_by": []}  # fmt: skip

    record = {
        "recipe": "paper", "metric": "neighbour_overlap", "direction": "maximize", "costs": ["macs"],
        "limits": {"macs": 9e6}, "steps": 100, "refused": 1, "hypervolume": 0.25,
        "candidates": [point(0, 0.30, 1.0, True), point(1, 0.35, 2.0, True), point(2, 0.2, 2.5, False)],
        "references": [{**point(3, 0.25, 2.2, False), "name": "by hand", "beaten_by": [1]}],
    }  # fmt: skip
    folder = locations.root(made.recipe(root)) / "search" / "paper-0123456789ab"
    artifact.write_json(folder / "search.json", record)
    artifact.finish(folder, kind="search", config={}, inputs={})
