"""``ossicle evaluate`` on published datasets in miniature: a split by device, instruments partly labelled."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score

from pipeline.config import LogMelConfig, Recipe, canonical_json
from pipeline.errors import ConfigError
from pipeline.evaluation.task import read_task
from pipeline.recipe import DATA_MANIFESTS
from stages import evaluate, manifest
from tests.evaluation import sounds
from tests.evaluation.dataset_folders import openmic2018, tau_scenes
from tests.evaluation.onnx_students import onnx_file


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, dict[str, Any], str]:
    """The folder, ``scores.json`` and print of an evaluation of an ONNX file on two such tasks."""
    folder = tmp_path_factory.mktemp("datasets")
    sounds.write_folder(folder / "audio")
    tau_scenes(folder / "tau", sound=True)
    openmic2018(
        folder / "openmic", read_task("openmic_nine", DATA_MANIFESTS / "tasks").audio.tag_columns, sound=True
    )
    model = onnx_file(folder / "student.onnx", {"ossicle.frontend": canonical_json(LogMelConfig(mels=16))})
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "paths": {"artifacts": folder / "artifacts"},
            "fetch": {"audio_folder": folder / "audio"},
            "embed": {"teacher": {"name": "tiny"}, "frontend": {"mels": 16}, "window_seconds": 0.5},
            "evaluate": {
                "tasks": ["tau_scenes", "openmic_nine"], "bootstrap": 50, "random_floors": 0,
                "audio_roots": {"tau_scenes": folder / "tau", "openmic_nine": folder / "openmic"},
                "grid": {"logistic_c": [0.1, 1.0], "neighbours": [1, 3], "folds": 2},
            },
            "runs": {"small": {"seeds": [0]}},
        }
    )  # fmt: skip
    printed = io.StringIO()
    manifest.run(recipe, console=Console(file=printed))
    made = evaluate.run(recipe, console=Console(file=printed, width=160), model=str(model))
    return recipe, made, json.loads((made / "scores.json").read_text()), printed.getvalue()


def test_every_metric_of_every_task_is_scored(evaluated: tuple[Recipe, Path, dict[str, Any], str]) -> None:
    _, _, scores, _ = evaluated
    expected = {
        "tau_scenes": "accuracy", "tau_scenes_balanced_accuracy": "balanced_accuracy",
        "openmic_nine": "mean_average_precision", "openmic_nine_macro_auc": "macro_auc",
    }  # fmt: skip
    assert {task["name"]: task["metric"] for task in scores["tasks"]} == expected
    models = {model["key"] for model in scores["models"]}
    assert {(row["task"], row["model"], row["probe"]) for row in scores["rows"]} == {
        (task, model, probe) for task in expected for model in models for probe in ("knn", "linear")
    }
    # Scenes differ in pitch: any log-mel tells them apart.
    found = [
        row["score"] for row in scores["rows"] if row["task"] == "tau_scenes" and row["probe"] == "linear"
    ]
    assert max(found) == 1.0


def test_scores_follow_from_the_stored_predictions(
    evaluated: tuple[Recipe, Path, dict[str, Any], str],
) -> None:
    _, folder, scores, _ = evaluated
    table = pd.read_parquet(folder / "predictions" / "openmic_nine.parquet")
    truth = np.array(table["truth"].tolist())
    for row in (row for row in scores["rows"] if row["task"] == "openmic_nine"):
        given = np.array(table[f"{row['model']}.{row['probe']}"].tolist())
        values = []
        for tag in range(truth.shape[1]):
            known = ~np.isnan(truth[:, tag])
            if len(set(truth[known, tag])) == 2:
                values.append(average_precision_score(truth[known, tag], given[known, tag]))
        assert row["score"] == pytest.approx(np.mean(values))


def test_devices_and_confusions_are_told_apart(evaluated: tuple[Recipe, Path, dict[str, Any], str]) -> None:
    _, folder, scores, _ = evaluated
    table = pd.read_parquet(folder / "predictions" / "tau_scenes.parquet")
    rows = [row for row in scores["conditions"] if row["task"] == "tau_scenes"]
    assert {row["condition"] for row in rows} == {"a", "b", "s4", "s5", "mean of seen", "mean of unseen"}
    for row in rows:
        if not row["condition"].startswith("mean"):
            of_it = table[table["condition"] == row["condition"]]
            right = of_it[f"{row['model']}.{row['probe']}"] == of_it["truth"]
            assert row["score"] == pytest.approx(right.mean()) and row["seen"] == (row["condition"] in "ab")
    matrices = [row for row in scores["confusions"] if row["task"] == "tau_scenes"]
    assert {row["probe"] for row in matrices} == {"knn", "linear"}
    assert all(np.sum(row["counts"]) == len(table) for row in matrices)


def test_a_task_without_its_folder_says_which(evaluated: tuple[Recipe, Path, dict[str, Any], str]) -> None:
    recipe = evaluated[0]
    asked = recipe.model_copy(
        update={"evaluate": recipe.evaluate.model_copy(update={"tasks": ("esc50",), "audio_roots": {}})}
    )
    with pytest.raises(ConfigError, match="task 'esc50' needs its audio"):
        evaluate.run(asked, console=Console(file=io.StringIO()), model="teacher:tiny")
