"""The runner that boards and QEMU run: alone, without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pipeline.measure import latency, model_cost
from tests.measure import graphs

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "pipeline", "pydantic", "pandas", "jaxtyping", "onnx"}:
            raise ImportError(name + " is not on a board")

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def board(tmp_path: Path, fp32: Path) -> Path:
    """A folder as on a board: the runner, a model and an input, and an interpreter without torch."""
    shutil.copyfile(latency.__file__, tmp_path / "latency.py")
    shutil.copyfile(fp32, tmp_path / "model.onnx")
    np.save(tmp_path / "input.npy", graphs.value())
    (tmp_path / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    return tmp_path


def _run(board: Path, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "latency.py", "model.onnx", "input.npy", "--json", *arguments],
        cwd=board, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(board)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record: dict[str, object] = json.loads(done.stdout)
    return record


def test_it_runs_where_torch_cannot_be_imported(board: Path, fp32: Path) -> None:
    record = _run(board, "--runs", "7", "--warmups", "1", "--output", "output.npy")
    assert record["runs"] == 7
    assert 0 < record["p10_ms"] <= record["p50_ms"] <= record["p95_ms"]  # type: ignore[operator]
    session = onnxruntime.InferenceSession(str(fp32), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"log_mel": graphs.value()})[0]
    np.testing.assert_allclose(np.load(board / "output.npy"), expected, rtol=0, atol=1e-6)
    assert record["output_sha256"] == latency.array_hash(np.load(board / "output.npy"))


def test_the_blocker_blocks(board: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import torch"], cwd=board, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(board)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "not on a board" in done.stderr


def test_marking_times_nothing(board: Path) -> None:
    record = _run(board, "--mark", "--runs", "3")
    assert record["runs"] == 3
    assert not any(name.endswith("_ms") for name in record)


def test_percentiles_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([0.004, 0.001, 0.003, 0.002, 0.005, 0.006, 0.010, 0.008])
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += next(durations)

    found = latency.time_calls(call, warmups=0, runs=8, seconds=100)
    expected = np.percentile([4, 1, 3, 2, 5, 6, 10, 8], [10, 50, 95])
    np.testing.assert_allclose([found["p10_ms"], found["p50_ms"], found["p95_ms"]], expected, rtol=1e-9)


def test_a_slow_call_is_timed_five_times_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += 60.0

    assert latency.time_calls(call, warmups=20, runs=200, seconds=5)["runs"] == latency.MINIMUM_RUNS


def test_hash_tells_shape_dtype_and_content_apart() -> None:
    arrays = [
        np.zeros(4, np.float32),
        np.zeros((2, 2), np.float32),
        np.zeros(2, np.float64),
        np.ones(4, np.float32),
    ]
    assert len({latency.array_hash(a) for a in arrays}) == len(arrays)


def test_time_here_is_a_process_of_its_own(fp32: Path) -> None:
    record = model_cost.time_here(fp32, graphs.value(), runs=10, seconds=2)
    assert record["runs"] <= 10
    assert record["threads"] == 1
    assert record["versions"]["onnxruntime"] == onnxruntime.__version__
