"""``ossicle benchmark --host`` against a board on loopback that has numpy and onnxruntime alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import MeasurementError
from stages import benchmark, locations
from tests.measure.fake_board import FakeBoard, running
from tests.measure.test_remote import TURNED
from tests.stages import benchmark_recipe


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    made = benchmark_recipe.make(tmp_path, monkeypatch)
    runs = {"big": made.runs["big"].model_dump()}
    changes = {
        "benchmark.arm": False,
        "benchmark.layers": False,
        "benchmark.latency_seconds": 0.1,
        "runs": runs,
    }
    return recipes.change(made, changes)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[FakeBoard]:
    with running(tmp_path / "board") as made:
        yield made


def _run(recipe: Recipe, board: FakeBoard) -> str:
    stream = io.StringIO()
    reached = recipes.change(recipe, {"benchmark.ssh_config": str(board.ssh_config)})
    benchmark.run(reached, console=Console(file=stream, width=200), host=board.host)
    return stream.getvalue()


def test_a_board_gets_a_column_and_a_file_and_a_wrong_one_no_time(recipe: Recipe, board: FakeBoard) -> None:
    printed = _run(recipe, board)
    name = board.host.removeprefix("ssh://")
    assert f"{name} p50 ms" in printed
    folder = locations.benchmark_folder(recipe)
    record = json.loads(next(folder.glob("board-*.json")).read_text(encoding="utf-8"))
    assert set(record["models"]) == {"big fp32", "big s8s8", "big u8s8", "log-mel frontend fp32"}
    for measured in record["models"].values():
        assert measured["comparison"]["believable"]
        assert f"{measured['p50_ms']:.2f}" in printed
    fp32 = locations.export_folder(recipes.expand(recipe)[0]) / "student_fp32.onnx"
    assert record["models"]["big fp32"]["file_sha256"] == artifact.file_digest(fp32)

    # The figures of this machine are reused; the board is asked again, and now computes something else.
    (board.site / "sitecustomize.py").write_text(TURNED, encoding="utf-8")
    printed = _run(recipe, board)
    assert "reused" in printed
    assert "output differs" in printed
    assert "big fp32 on" in printed
    assert "no time is shown" in printed

    board.cut = "--once"
    with pytest.raises(MeasurementError, match="broke while running big fp32"):
        _run(recipe, board)
