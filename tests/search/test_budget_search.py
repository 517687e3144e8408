"""``ossicle search`` on a small store: limits before training, halving on the way, the Pareto set at the end."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, MissingArtifactError
from pipeline.search.families import FAMILIES, search_space
from pipeline.store.schema import frontend_digest
from stages import report, search, trial_jobs
from tests.search.in_process import small_study, train_here

pytest.importorskip("optuna")
LIMIT = 40_000


def searched(recipe: Recipe, **options: Any) -> tuple[Path, dict[str, Any], pd.DataFrame, str]:
    console = Console(file=io.StringIO(), width=200)
    folder = search.run(recipe, console=console, **options)
    record = json.loads((folder / "search.json").read_text())
    said: str = console.file.getvalue()  # type: ignore[attr-defined]
    return folder, record, pd.read_parquet(folder / "trials.parquet"), said


def small_search(folder: Path, **changes: Any) -> Recipe:
    return small_study(
        folder,
        **{
            "search.students": ["cnn4", "cp_mobile_6k"], "search.width_high": 1.0, "search.steps": 9,
            "search.candidates": 7, "search.max_macs": LIMIT, "search.references": ["cp_mobile_12k"],
            "search.startup_trials": 4, **changes,
        },
    )  # fmt: skip


def test_a_search_returns_the_pareto_set_as_ready_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_here(monkeypatch)
    recipe = small_search(tmp_path)
    folder, record, frame, said = searched(recipe)
    counted = frame["outcome"].value_counts()
    assert counted["done"] + counted.get("pruned", 0) == 7
    assert record["rungs"] == [1, 3, 9]

    # What is over the limit was never trained, and says why.
    refused = frame[frame["outcome"] == "refused"]
    assert len(refused) == record["refused"] > 0
    assert refused["reason"].str.contains("macs .* > 40,000").all()
    assert refused["folder"].isna().all()
    assert len(trained) <= 7 + 1
    assert all(point["costs"]["macs"] <= LIMIT for point in record["candidates"])

    # What was stopped early was judged at a rung, is not finished and no member.
    pruned = [point for point in record["candidates"] if point["outcome"] == "pruned"]
    assert pruned
    for point in pruned:
        assert point["step"] in (1, 3)
        assert not point["member"]
        assert not artifact.is_finished(tmp_path / "artifacts" / "run" / point["folder"])

    # The set, by its definition.
    done = [point for point in record["candidates"] if point["outcome"] == "done"]
    for point in done:
        summary = artifact.read(tmp_path / "artifacts" / "run" / point["folder"]).summary
        assert (point["score"], point["step"]) == (summary["validation_neighbour_overlap"], 9)
        beaten = any(
            other["score"] >= point["score"] and other["costs"]["macs"] <= point["costs"]["macs"]
            and (other["score"], other["costs"]["macs"]) != (point["score"], point["costs"]["macs"])
            for other in done
        )  # fmt: skip
        assert point["member"] == (not beaten)
    members = sorted((p for p in done if p["member"]), key=lambda p: p["costs"]["macs"])

    # Its volume: each step of the staircase up to the limit, in decades.
    ends = [math.log10(p["costs"]["macs"]) for p in members] + [math.log10(LIMIT)]
    area = sum(p["score"] * (b - a) for p, a, b in zip(members, ends, ends[1:], strict=False))
    assert record["hypervolume"] == pytest.approx(area)
    assert record["reference"] == {"score": 0.0, "macs": LIMIT}

    # Members are recipes of the whole training, and their brief runs are those of the search.
    paths = sorted((folder / "recipes").glob("*.toml"))
    assert len(paths) == len(members)
    for path, point in zip(paths, members, strict=True):
        ready = recipes.load(path)
        assert (ready.train.steps, ready.train.validate_every) == (12, 4)
        assert ready.student.width == point["values"].get("student.width", recipe.student.width)
        brief = recipes.change(
            ready, {"train.steps": 9, "train.validate_every": 1, "train.warmup_steps": 3, "name": "small"}
        )
        assert trial_jobs.job_of(brief).folder.name == point["folder"]

    # The hand-made student was trained alike, and is told who beats it.
    (reference,) = record["references"]
    assert (reference["name"], reference["width"], reference["step"]) == ("cp_mobile_12k", 1.0, 9)
    better = [
        p["trial"] for p in members
        if p["score"] >= reference["score"] and p["costs"]["macs"] <= reference["costs"]["macs"]
    ]  # fmt: skip
    assert reference["beaten_by"] == better or sorted(reference["beaten_by"]) == sorted(better)
    assert (folder / "pareto.svg").read_text().count("<svg") == 1
    assert "Pareto-optimal" in said

    # Again: nothing is trained; and the report shows it.
    before = len(trained)
    assert searched(recipe)[1] == record
    assert len(trained) == before
    page = report.run(recipe, console=Console(file=io.StringIO())) / "report.html"
    text = page.read_text()
    assert "What a search found" in text
    assert f"{record['hypervolume']:.3f}" in text
    assert "cp_mobile_12k" in text


def test_inputs_are_derived_or_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_here(monkeypatch)
    recipe = small_search(tmp_path, **{"search.references": []})
    with pytest.raises(MissingArtifactError) as caught:
        searched(recipes.change(recipe, {"search.mels": [16, 40]}))
    assert "more_frontends=[{ mels = 40 }]" in str(caught.value)
    assert not trained
    hops = recipes.change(
        recipe, {"search.hop_lengths": [640], "search.candidates": 2, "search.max_macs": None}
    )
    _, record, frame, said = searched(hops)
    assert "hop 640 derived" in said
    assert set(frame["embed.frontend.hop_length"]) == {640}
    for point in (p for p in record["candidates"] if p["outcome"] == "done"):
        config = artifact.read(tmp_path / "artifacts" / "run" / point["folder"]).inputs
        assert config["frontend"] == frontend_digest(
            recipe.embed.frontend.model_copy(update={"hop_length": 640})
        )
    assert record["limits"] == {}


def test_what_is_impossible_stops_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_here(monkeypatch)
    recipe = small_search(tmp_path)
    for changes, words in (
        ({"search.students": ["cnn4", "micronet_m9"]}, "did you mean micronet"),
        ({"search.references": ["cnn44"]}, "did you mean cnn4"),
        ({"search.space": {"loss.angel": {"low": 0, "high": 1}}}, "did you mean loss.angle"),
    ):
        with pytest.raises(ConfigError) as caught:
            searched(recipes.change(recipe, changes))
        assert words in str(caught.value)
    for changes, words in (
        ({"search.width_low": 3.0}, "above width_high"),
        ({"search.steps": 5}, "need 9 steps or more"),
        ({"search.costs": ["macs", "macs"]}, "one cost twice"),
    ):
        with pytest.raises(ConfigError, match=words):
            recipes.change(recipe, changes)
    assert not trained
    assert not (tmp_path / "artifacts" / "search").exists()


def test_every_family_that_is_searched_by_default_exists_and_depth_is_among_what_varies() -> None:
    space = search_space(Recipe().search)
    (names,) = [d.choices for d in space.dimensions if d.key == "student.name"]
    assert names == FAMILIES
    deep = search_space(recipes.change(Recipe(), {"search.students": ["cnn4", "eres2net"]}).search)
    (blocks,) = [d for d in deep.dimensions if d.key == "student.options.blocks"]
    assert blocks.when == (("student.name", ("eres2net",)),)
