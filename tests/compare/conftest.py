"""Clips, a recipe, and a file of ours and of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Recipe, canonical_json
from tests.compare import foreign_files
from tests.compare.side_by_side import FRONTEND, WINDOW_SECONDS
from tests.evaluation import sounds
from tests.evaluation.onnx_students import onnx_file


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 18 clips of three classes; the number of a clip is the recording it is from."""
    folder = tmp_path_factory.mktemp("clips")
    rows = [f"{path},{label},{path[-5]}" for path, label in sounds.write_folder(folder)]
    (folder / "mine.csv").write_text("path,label,who\n" + "\n".join(rows))
    return folder / "mine.csv"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "paths": {"artifacts": tmp_path / "artifacts"},
            "embed": {
                "teacher": {"name": "tiny"},
                "frontend": {"mels": 16},
                "window_seconds": WINDOW_SECONDS,
            },
            "evaluate": {"bootstrap": 60},
            "benchmark": {"latency_runs": 10, "latency_seconds": 0.05},
        }
    )


@pytest.fixture
def ours(tmp_path: Path) -> str:
    """The smallest student: the log-mel's mean over time."""
    return str(onnx_file(tmp_path / "mean.onnx", {"ossicle.frontend": canonical_json(FRONTEND)}))


@pytest.fixture
def theirs(tmp_path: Path) -> str:
    return str(foreign_files.waveform_model(tmp_path / "bank.onnx"))
